"""What runs inside the walls: the server of one sandbox and the programs it starts.

Standard library only, and little of it: this code travels to an interpreter that starts for every sandbox, where an
import of `json`, `signal`, `ctypes` or `typing` costs milliseconds each. `server.py` is the loop, `jobs.py` one running
program, `programs.py` how it begins, `processes.py` who lives and how all of it dies, `files.py` the workspace,
`interpreter.py` Python without a start, `walls.py` what a program gives up where no namespace holds it, `frames.py` the
messages.
"""

MODULES = ("frames", "processes", "files", "interpreter", "walls", "jobs", "programs", "server")
"""In the order of their imports; the host sends them in this order."""
