"""How good and how sure: held-out tasks with intervals, and what the sparse form costs against the dense one."""
