"""What requests for evidence cost those beside them.

    python benchmarks/explaining.py [--seconds 15] [--rounds 3]

Starts the real server, and sends it 512 px JPEGs of photographs by four clients who wait for each
answer: alone, beside one more client with a 12-megapixel JPEG, and beside one who asks for evidence
of it, in turns. Printed are p50 and p99 of the four.
"""

import argparse
import sys
import time

from benchmarks.hostile import CLIENTS, Phase, row, uploading
from benchmarks.load import Closed, Target, apply_load
from benchmarks.local import SERVE, local_server
from benchmarks.memory import photograph
from benchmarks.serving import photographs

ALONE, PLAIN, EXPLAINED = "alone", "beside a plain upload", "beside an explained one"
PATHS = {ALONE: None, PLAIN: "/detect", EXPLAINED: "/detect?explain=true"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=15, help="of a turn")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    phases = {name: Phase() for name in PATHS}
    image = photograph(12)
    with local_server(SERVE) as server:
        target = Target(server.url, photographs(), pid=server.pid)
        for _ in range(chosen.rounds):
            for name, phase in phases.items():
                start = time.perf_counter()
                path = PATHS[name]
                with uploading(server.url, [image] if path else [], path or "") as answers:
                    phase.loads.append(apply_load(target, Closed(CLIENTS), seconds=chosen.seconds))
                phase.seconds += time.perf_counter() - start
                phase.uploads += answers
    print(f"| {CLIENTS} clients | results | p50, ms | p99, ms | p99 by round | uploads/s beside |")
    print("|---|---|---|---|---|---|")
    for name, phase in phases.items():
        print(row(name, phase))
    failed = sum(answer.status != 200 for phase in phases.values() for answer in phase.uploads)
    failed += sum(phase.failed for phase in phases.values())
    print(f"\n{failed} requests without a result")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
