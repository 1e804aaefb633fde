"""Imported by the process that arms are forked from, and by no other: it ends with the server.

By itself it would not while an arm lives, because every arm holds the pipe that it watches; and an
arm that is stopped lives on. So the kernel kills it with the server (Linux), and it takes its arms
along (:func:`.arm_process.end_with_parent`).
"""

from workbench.serve.arm_process import end_with_parent

end_with_parent()
