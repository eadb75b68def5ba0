"""The operations as Triton kernels: per file the maths, the configurations, the kernels and their plain
launchers.

Imported at the first launch, so that `import kernels` needs no Triton. Launchers trust their arguments; the
public functions in `kernels` check them. Under `TRITON_INTERPRET=1` the same code runs on CPU tensors.
"""
