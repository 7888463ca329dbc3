"""What stands for Python on the caller's side: hands its arguments and streams over and ends as the job does."""

import contextlib
import json
import os
import signal
import socket
import sys

ANSWER = 4
"""Bytes of a job's exit status; negative where a signal ended it."""


def main() -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(sys.argv[1])
        asked = {"arguments": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}
        text = json.dumps(asked).encode()
        socket.send_fds(connection, [len(text).to_bytes(ANSWER, "big")], [0, 1, 2])
        connection.sendall(text)
        answer = connection.recv(ANSWER)
    status = int.from_bytes(answer, "big", signed=True) if answer else 1
    if status < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler to put back
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
