"""A rank that joins the others and adds up numbers with them until that fails: for row F16."""

import sys
import time
from datetime import timedelta

from configs.errors import OnwardError


def main(limit: float) -> None:
    """Says ``joined`` and what went wrong, each with the time; ``limit``: of a collective."""
    import torch

    from engine import distributed

    print(f"\nbegin {time.time()}", flush=True)
    try:
        distributed.start(limit=timedelta(seconds=limit))
        print(f"\njoined {time.time()}", flush=True)
        while True:
            distributed.all_reduce(torch.ones(1))
            time.sleep(0.05)
    except (OnwardError, RuntimeError) as error:
        print(f"\nfailed {time.time()} {' '.join(str(error).split())}", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
