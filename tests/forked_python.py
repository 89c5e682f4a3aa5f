"""Runs Python programs that import torch, each as a fork of one process that has already loaded torch. Loading
torch and its optimizers takes six seconds of CPU time, which is spent only once.

  forked_python.py --serve              loads torch, and waits until its standard input ends
  forked_python.py PROGRAM [arguments]  runs the program as `python3 PROGRAM [arguments]` does, in a process that
                                        the waiting one forks

The waiting process listens in the folder of this file, and removes the folder when it ends.
"""

import json
import os
import select
import signal
import socket
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
ADDRESS = os.path.join(FOLDER, "socket")


def serve():
    import shutil

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(ADDRESS)
    listener.listen(64)
    print("ready", flush=True)
    load()
    while True:
        readable, _, _ = select.select([0, listener], [], [])
        if 0 in readable and not os.read(0, 1):
            shutil.rmtree(FOLDER)
            return
        if listener in readable:
            fork(listener)


def load():
    try:
        import torch
    except ModuleNotFoundError:
        # The forked program reports the missing module when it imports torch itself.
        return
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.Adam([weight]).step()


def fork(listener):
    caller, _ = listener.accept()
    with caller:
        message, streams, _, _ = socket.recv_fds(caller, 1 << 16, 3)
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for at, stream in enumerate(streams):
                os.dup2(stream, at)
                os.close(stream)
            caller.send(bytes([run(*json.loads(message))]))
            os._exit(0)
    for stream in streams:
        os.close(stream)


def run(folder, arguments):
    """Runs the program in this process and returns its exit code."""
    import runpy
    import traceback

    os.chdir(folder)
    sys.argv = arguments
    sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
    code = 0
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    return code


def ask():
    """Asks the waiting process to run the program. Returns the program's exit code, or 1 if it ended without one."""
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(ADDRESS)
        message = json.dumps([os.getcwd(), sys.argv[1:]]).encode()
        socket.send_fds(waiting, [message], [0, 1, 2])
        return int.from_bytes(waiting.recv(1) or b"\1", "big")


if sys.argv[1:] == ["--serve"]:
    serve()
else:
    sys.exit(ask())
