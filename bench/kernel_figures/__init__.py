"""What `python -m bench kernels` shows: cases, checks, counts, times and bars."""
