"""The inner loops of ranking: compiled by numba, with NumPy alone where that is missing, and with torch on a GPU.

All give the same integers, and the first two the same sums to the last bit.
"""
