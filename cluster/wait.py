"""Wait until a cluster is complete.

    python -m cluster.wait ADDRESS NODES SECONDS

Called by the rendered Slurm script, on the node that holds the head.
"""

from __future__ import annotations

import contextlib
import sys
import time

from cluster.session import alive_nodes, connected
from idgbr.errors import IdgbrError, Missing

POLL_S = 0.5


def wait_for_nodes(address: str, nodes: int, seconds: float) -> int:
    """Block until `nodes` nodes are alive at `address` (IP:PORT), whose head may itself still be starting. Returns
    how many are alive.

    Raises:
        Missing: fewer have joined in time, or nothing answers there.
        Disagreement: it refuses our token, or runs another version of Ray or Python.
    """
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(connected(address))
                break
            except Missing as error:
                if time.monotonic() > deadline:
                    raise Missing(f"no Ray head answers at {address} within {seconds:.0f} s: {error}", hint="see the head's log") from error
                time.sleep(POLL_S)
        while (alive := len(alive_nodes())) < nodes:
            if time.monotonic() > deadline:
                raise Missing(
                    f"{alive} of {nodes} nodes joined the cluster at {address} within {seconds:.0f} s",
                    hint="see the workers' logs beside the head's; is network_interface right, are ports open between the nodes?",
                )
            time.sleep(POLL_S)
        return alive


def main(words: list[str]) -> int:
    address, nodes, seconds = words
    try:
        print(f"{wait_for_nodes(address, int(nodes), float(seconds))} nodes", file=sys.stderr)
    except IdgbrError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
