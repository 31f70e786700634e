"""The meaning of a composed train config, without torch: its keys, the kinds of its values, its shape and its budget.

Shared by training and by sweeps, which plan runs that other processes train.
"""
