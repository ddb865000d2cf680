"""Queue a workflow in API format and wait for it: python run.py WORKFLOW.json [http://127.0.0.1:8188]"""

import json
import sys
import time
import urllib.request

server = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:8188"
with open(sys.argv[1], encoding="utf-8") as file:
    body = json.dumps({"prompt": json.load(file)}).encode()
request = urllib.request.Request(f"{server}/prompt", body, {"Content-Type": "application/json"})
prompt_id = json.load(urllib.request.urlopen(request))["prompt_id"]
while prompt_id not in (history := json.load(urllib.request.urlopen(f"{server}/history/{prompt_id}"))):
    time.sleep(1)
print(json.dumps(history[prompt_id]["outputs"], indent=2))
sys.exit(history[prompt_id]["status"]["status_str"] != "success")
