"""A Ray cluster of several nodes on this machine, in a process of its own. It ends when its stdin does.

The process prints the cluster's address. A line of stdin is a command, and is answered by a line: ``add`` a node, and
``kill`` the oldest of the nodes that were added. Arguments: the environment of the nodes, as JSON, one object a node.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any

warnings.simplefilter("ignore")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}


def main() -> None:
    """Start the cluster, and obey."""
    from ray.cluster_utils import Cluster

    environments: list[dict[str, str]] = [json.loads(argument) for argument in sys.argv[1:]]
    # The head computes nothing, so that any node that computes may be killed.
    head: dict[str, Any] = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(**NODE, env_vars=environment) for environment in environments]
    print(cluster.address, flush=True)
    for line in sys.stdin:
        if line == "add\n":
            nodes.append(cluster.add_node(**NODE, env_vars=environments[0]))
        else:
            cluster.remove_node(nodes.pop(0), allow_graceful=False)
        print("done", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
