"""Check and interpret a composed train config without torch: its keys, the kinds of its values, its shape and budget.

Training uses this, and also sweeps, which plan runs that other processes train.
"""
