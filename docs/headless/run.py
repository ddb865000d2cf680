"""Queue a workflow in API format and wait for it: python3 run.py WORKFLOW.json [http://127.0.0.1:8188 [9.seed=7 ...]]

What follows the server sets inputs of nodes: NODE.INPUT=VALUE.
"""

import json
import sys
import time
import urllib.error
import urllib.request

server = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8188"
with open(sys.argv[1], encoding="utf-8") as file:
    graph = json.load(file)
for setting in sys.argv[3:]:
    place, _, value = setting.partition("=")
    node, _, name = place.partition(".")
    graph[node]["inputs"][name] = int(value) if value.lstrip("-").isdigit() else value
request = urllib.request.Request(f"{server}/prompt", json.dumps({"prompt": graph}).encode())
try:
    prompt_id = json.load(urllib.request.urlopen(request))["prompt_id"]
except urllib.error.HTTPError as error:  # what ComfyUI refuses before it runs anything
    sys.exit(error.read().decode())
while prompt_id not in (history := json.load(urllib.request.urlopen(f"{server}/history/{prompt_id}"))):
    time.sleep(1)
print(json.dumps(history[prompt_id]["outputs"], indent=2))
sys.exit(history[prompt_id]["status"]["status_str"] != "success")
