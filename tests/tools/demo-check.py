"""Judges the JSON of a run of the demo's script. Usage: demo-check.py FILE [VERSION OF ENVOY]"""

import json
import sys

with open(sys.argv[1], encoding="utf-8") as file:
    run = json.load(file)
envoy = sys.argv[2] if len(sys.argv) > 2 else None
plain = ["resolve", "weights", "private-cluster", "failover", "failback"]
with_envoy = ["header", "split", "mirror", "timeout-retry", "outlier", "mtls", "sidecar-failover"]


def check(holds, what):
    if not holds:
        sys.exit(f"the demo: {what}")


steps = {step["name"]: step["detail"] for step in run["steps"] if step["ok"]}
first = run["first_cross_cloud_answer_ms"]
print(f"isolation {run['isolation']}, Envoy {envoy}, first answer across clouds after {first:.0f} ms")
check(run["isolation"] == "namespaces", "not in namespaces")
check(list(steps) == (plain + with_envoy if envoy else plain), f"steps that are ok: {list(steps)}")
if not envoy:
    check(run["envoy"] is None, "an Envoy that was not asked for")
    check(first <= 3000, "the first answer took longer than 3 s")
    sys.exit()

check(run["envoy"]["version"] == envoy, run["envoy"])
for name in with_envoy:
    print(f"{name}: {json.dumps(steps[name])}")
check(steps["header"]["jason"]["answered_by"] == {"v2": 100}, "the header")
split = steps["split"]["counted"]["answered_by"]
check(abs(split["v1"] - 800) <= 60 and sum(split.values()) == 1000, split)
check(steps["mirror"]["answers"]["answered_by"] == {"v1": 100}, "answers of a copy")
check(steps["mirror"]["requests_counted_by_v3"] >= 97, "copies")
check(steps["timeout-retry"]["timeout"]["timed_out"] == 20, "the timeout")
outlier = steps["outlier"]
after = outlier["counted_by_pods_after"]
check(after[outlier["bad_pod"]] == 0 and outlier["failed_after"] == 0, outlier)
check(sum(share > 0 for share in after.values()) == len(after) - 1 >= 2, outlier)
check(
    steps["mtls"]["caller_seen_by"]["reviews v2 (gke)"]
    == {"spiffe://onprem.example/ns/bookinfo/sa/bookinfo-productpage": 100},
    steps["mtls"],
)
check(steps["sidecar-failover"]["failover"]["failed_after_detection"] == 0, "the failover")
check(steps["sidecar-failover"]["failback"]["afterwards"]["answered_by"] == "gke", "the way back")
