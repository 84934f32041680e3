"""A device that is not the CPU, on machines that have no other: what runs here would run on a GPU.

torch can register a device backend that is written in Python. Tensors on the device "second" keep a CPU
tensor inside, and every operator runs on that: results are the CPU's bit for bit. What CUDA refuses is
refused: an operator that mixes devices, a conversion to NumPy, page-locking what is not on the host, a
generator of another device. What costs a GPU something is counted: operators, host synchronizations, bytes
that go to the device, the most bytes held.
"""
