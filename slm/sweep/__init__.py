"""Many runs: collecting their results, auditing that they compare like with like, shapes of a wanted size.

Training code is never imported here, and importing any module of it imports no torch.
"""
