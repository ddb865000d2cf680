"""Many videos over many machines, with Ray: `python3 -m tools.cluster --help`, docs/cluster.md.

run         the command: from a workflow and a list to a folder of videos
targets     finds the inputs of a graph that receive prompt, negative, seed and image
jobs        one job per line of a list
ledger, locks   jobs.jsonl: what was handed out, done, failed; one driver at a time writes it
drive       which host gets which job, and what happens when one fails or is lost
host        one ComfyUI server on a machine of the cluster; a Ray actor
orphans, tied   no server outlives its host
ray_cluster, ray_hosts   hosts on all machines of a Ray cluster: started, watched, replaced
fetch       what a job has written, from its host
results     files of a job, checked and published without replacing any
display, sheet   what a person sees: the terminal, a page of thumbnails
simulation  the driver on fake hosts that fail at random
ray_share   the driver on real Ray actors that do nothing
pack        what is used of the node pack, without torch
"""

import os

# Ray reads these once, when it is imported. A process that sets them later fails to connect to the Ray that it starts.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"  # of jobs whose host we have just stopped
