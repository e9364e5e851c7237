"""The operations in Triton, one file each, under the name of the torch reference beside this folder.

They stand apart from their references because ``@triton.jit`` needs Triton at import: nothing imports these modules
before `kernels.dispatch` has said that Triton runs. Each offers `aot_cases(shape)`, its launches for a model's shapes.
"""
