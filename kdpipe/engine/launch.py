"""Start a sub-command in several processes, one a GPU, by ``torchrun``'s own launcher.

The command is the same as for one process, and so are its exit codes: ``torchrun`` by itself exits
with 1 whatever the processes said.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from kdpipe.engine.signals import StopRequest
from kdpipe.errors import Interrupted, KdpipeError

_SECONDS_TO_SAVE = 120  # torchrun's own 30 may be short for a large network on a slow disk


def launch(count: int, arguments: Sequence[str], on_stop: str) -> None:
    """Run ``kdpipe ARGUMENTS`` in `count` processes that train together.

    After a signal they save and end, and this process does what `on_stop` says (`StopRequest`).

    Raises:
        Interrupted: stopped by a signal, which the processes were told.
        SystemExit: one of them failed; with its exit code.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    flags = ["--standalone", f"--nproc-per-node={count}", f"--shutdown-timeout={_SECONDS_TO_SAVE}"]
    flags.append("--signals-to-handle=SIGTERM,SIGINT,SIGUSR1,SIGHUP,SIGQUIT")
    try:  # "--": or torchrun takes kdpipe's --run for one of its own
        run.run(run.parse_args([*flags, "-m", "--", "kdpipe", *arguments, "--on-stop", "exit"]))
    except SignalException as error:
        name = signal.Signals(error.sigval).name
        with StopRequest(on_stop) as stop:
            stop.received = name
            stop.wait()
        raise Interrupted(f"stopped by {name}; run the same command to go on") from None
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode > 0:
            sys.exit(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        raise KdpipeError(
            f"process {failure.local_rank} of {count} was ended by {name}; run the same command to "
            "go on from the last checkpoint"
        ) from None
