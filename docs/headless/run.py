"""Queue a workflow in API format and wait for it: python3 run.py WORKFLOW.json [http://127.0.0.1:8188 [9.seed=7 ...]]

What follows the server sets inputs of nodes: NODE.INPUT=VALUE.
"""

import json
import sys
import time
import urllib.error
import urllib.request

if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
    sys.exit(__doc__)
server = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8188"
try:
    with open(sys.argv[1], encoding="utf-8") as file:
        graph = json.load(file)
except (OSError, ValueError) as error:
    sys.exit(f"{sys.argv[1]} cannot be read as JSON: {error}")
for setting in sys.argv[3:]:
    place, equals, value = setting.partition("=")
    node, _, name = place.partition(".")
    inputs = graph[node]["inputs"] if node in graph else {}
    if not equals or name not in inputs:  # ComfyUI would ignore it
        there = f"inputs of node {node}: {', '.join(inputs)}" if node in graph else f"nodes: {', '.join(graph)}"
        sys.exit(f"Expected NODE.INPUT=VALUE with an input of the workflow, got {setting}; {there}.")
    if not isinstance(inputs[name], str):  # a number, true or false
        try:
            value = json.loads(value)
        except ValueError:
            pass
    inputs[name] = value
request = urllib.request.Request(f"{server}/prompt", json.dumps({"prompt": graph}).encode())
try:
    prompt_id = json.load(urllib.request.urlopen(request))["prompt_id"]
except urllib.error.HTTPError as error:  # what ComfyUI refuses before it runs anything
    sys.exit(error.read().decode())
except urllib.error.URLError as error:
    sys.exit(f"{server} does not answer: {error.reason}. Start ComfyUI, or name its address after the workflow.")
while prompt_id not in (history := json.load(urllib.request.urlopen(f"{server}/history/{prompt_id}"))):
    time.sleep(1)
print(json.dumps(history[prompt_id]["outputs"], indent=2))
status = history[prompt_id]["status"]
for kind, error in status["messages"]:
    if kind == "execution_error":
        sys.exit(f"{error['node_type']} (node {error['node_id']}): {error['exception_message'].strip()}")
sys.exit(status["status_str"] != "success")
