"""The inner loops of ranking: compiled by numba, with NumPy alone if numba is missing, and with torch on a GPU.

All three compute the same integers. The first two also compute the same sums of precisions, to the last bit.
"""
