"""A W&B server for tests: in memory, on the loopback only.

It answers what wandb asks for in online runs, in `wandb sync`, `wandb sweep` and `wandb agent`,
through wandb.Api, and where workspaces and reports are saved.

    with WandbServer() as server:       # WANDB_BASE_URL=server.url, and a key of 40 characters
        ...                             # what came in: server.runs, server.alerts, server.uploads,
        server.received
"""

import base64
import gzip
import itertools
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

ENTITY = "tester"
ACCOUNT = {
    "id": "e",
    "name": ENTITY,
    "entity": ENTITY,
    "username": ENTITY,
    "email": "",
    "admin": False,
    "flags": "{}",
}
TEAMS = {"teams": {"edges": [{"node": {"name": ENTITY}}]}, "apiKeys": {"edges": []}}
LONG_AGO = "2026-01-01T00:00:00Z"


@dataclass
class StoredRun:
    """A run as the server knows it."""

    project: str
    id: str
    # what UpsertBucket said: displayName, groupName ...
    attributes: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, list[str]] = field(default_factory=dict)  # file -> its lines
    state: str = "running"
    preempting: bool = False  # mark_preempting was called
    exit_code: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        stored = json.loads(self.attributes.get("config") or "{}")
        return {key: item["value"] for key, item in stored.items()}

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.streams.get("wandb-history.jsonl", [])]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.streams.get("wandb-summary.json")
        summary: dict[str, Any] = json.loads(
            lines[-1] if lines else self.attributes.get("summaryMetrics") or "{}"
        )
        return summary

    def as_bucket(self) -> dict[str, Any]:
        """The run as GraphQL shows it; every field that any of the queries asks for."""
        history = self.streams.get("wandb-history.jsonl", [])
        last_step = json.loads(history[-1])["_step"] if history else -1
        count = {"typeCounts": [{"type": "number", "count": len(history)}]}
        said = self.attributes
        return {
            "id": base64.b64encode(f"{self.project}/{self.id}".encode()).decode(),
            "name": self.id,
            "displayName": said.get("displayName") or self.id,
            "project": {"id": "p", "name": self.project, "entity": ACCOUNT},
            "projectId": "1",
            "user": ACCOUNT,
            "state": self.state,
            "tags": said.get("tags") or [],
            "group": said.get("groupName"),
            "jobType": said.get("jobType"),
            "notes": said.get("notes"),
            "host": said.get("host"),
            "config": said.get("config") or "{}",
            "summaryMetrics": json.dumps(self.summary),
            "systemMetrics": "{}",
            "wandbConfig": '{"t": 1}',
            "historyLineCount": len(history),
            "historyTail": json.dumps(history[-1:]),
            "historyKeys": {
                "lastStep": last_step,
                "sets": [],
                "keys": {k: count for row in self.history for k in row},
            },
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "createdAt": LONG_AGO,
            "heartbeatAt": LONG_AGO,
            "readOnly": False,
            "files": {"edges": []},
            **dict.fromkeys(("commit", "description", "sweepName", "runInfo")),
        }


@dataclass
class StoredSweep:
    """A grid: each heartbeat of an idle agent takes one of its trials. `stopped`: as by the button
    in W&B.
    """

    name: str
    project: str
    text: str  # the YAML that came in
    started: list[str] = field(default_factory=list)  # ids of runs
    stopped: bool = False

    def __post_init__(self) -> None:
        said = yaml.safe_load(self.text)["parameters"]
        axes = [
            [(key, value) for value in spec.get("values", [spec.get("value")])]
            for key, spec in said.items()
        ]
        self._waiting = [dict(trial) for trial in itertools.product(*axes)]

    def commands(self, running: list[str]) -> list[dict[str, Any]]:
        """For an agent that runs these."""
        if running:
            return [{"type": "stop", "run_id": run_id} for run_id in running if self.stopped]
        if self.stopped or not self._waiting:
            return [{"type": "exit"}]
        self.started.append(f"{self.name}trial{len(self.started)}")
        args = {key: {"value": value} for key, value in self._waiting.pop(0).items()}
        return [{"type": "run", "run_id": self.started[-1], "args": args, "program": "unused"}]


class WandbServer:
    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], StoredRun] = {}
        self.sweeps: dict[str, StoredSweep] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.views: list[dict[str, Any]] = []
        """What UpsertView said of workspaces and reports."""
        self.alerts: list[dict[str, Any]] = []
        self.uploads: dict[str, bytes] = {}
        self.received: list[bytes] = []
        """The path and body of every request, decompressed."""
        self.unknown: set[str] = set()
        """Operations that were asked for and are not written here."""
        self._lock = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "WandbServer":
        threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """From here on every connection is refused."""
        self._http.shutdown()
        self._http.server_close()

    @property
    def run(self) -> StoredRun:
        """The only run."""
        (run,) = self.runs.values()
        return run

    def answer(self, method: str, path: str, body: bytes) -> bytes | dict[str, Any] | None:
        """None: not found."""
        with self._lock:
            self.received.append(path.encode() + b"\n" + body)
            if method == "PUT":
                self.uploads[path] = body
                return {}
            if method == "GET":
                return self.uploads.get(path)
            if path == "/graphql":
                request = json.loads(body)
                return self._graphql(request["query"], request.get("variables") or {})
            if stream := re.fullmatch(r"/files/[^/]+/([^/]+)/([^/]+)/file_stream", path):
                return self._file_stream(self.runs[stream[1], stream[2]], json.loads(body))
            return None

    def _file_stream(self, run: StoredRun, chunk: dict[str, Any]) -> dict[str, Any]:
        for name, part in (chunk.get("files") or {}).items():
            lines = run.streams.setdefault(name, [])
            lines[part["offset"] :] = part["content"]
        run.preempting |= bool(chunk.get("preempting"))
        if chunk.get("complete"):
            run.exit_code = chunk.get("exitcode")
            run.state = "finished"
            if run.exit_code:
                run.state = "preempted" if run.preempting else "failed"
        return {"exitcode": None, "limits": {}}

    def _graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        named = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
        operation = named[1] if named else query
        answer = getattr(self, f"_on_{operation}", None)
        if answer is None:
            self.unknown.add(operation)
            return {
                "data": None,
                "errors": [{"message": f"{operation} is not written in tests/wandb_server.py"}],
            }
        return {"data": answer(variables)}

    def _on_ServerFeaturesQuery(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _on_Viewer(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": ACCOUNT | TEAMS}

    _on_GetDefaultEntity = _on_Viewer

    def _on_OrganizationCoreWeaveOrganizationID(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {"entity": None}

    def _on_UpsertBucket(self, said: dict[str, Any]) -> dict[str, Any]:
        if said.get("id"):
            project, run_id = base64.b64decode(said["id"]).decode().split("/")
        else:
            project, run_id = said.get("project") or "uncategorized", said["name"]
        inserted = (project, run_id) not in self.runs
        run = self.runs.setdefault((project, run_id), StoredRun(project, run_id))
        run.state = "running"
        run.attributes |= {key: value for key, value in said.items() if value is not None}
        return {"upsertBucket": {"bucket": run.as_bucket(), "inserted": inserted}}

    def _on_RunResumeStatus(self, said: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get((said["project"], said["name"]))
        bucket = run.as_bucket() if run else None
        return {"model": {"id": "m", "name": said["project"], "entity": ACCOUNT, "bucket": bucket}}

    def _on_NotifyScriptableRunAlert(self, said: dict[str, Any]) -> dict[str, Any]:
        self.alerts.append(said)
        return {"notifyScriptableRunAlert": {"success": True}}

    def _on_CreateRunFiles(self, said: dict[str, Any]) -> dict[str, Any]:
        folder = f"{self.url}/storage/{said['project']}/{said['run']}"
        files = [{"name": name, "uploadUrl": f"{folder}/{name}"} for name in said["files"]]
        return {"createRunFiles": {"runID": said["run"], "uploadHeaders": [], "files": files}}

    # What wandb.Api asks for.

    def _project(self, said: dict[str, Any], **fields: Any) -> dict[str, Any]:
        run = self.runs.get(
            (said["project"], said.get("name") or said.get("run") or said.get("runName") or "")
        )
        return {"project": {"internalId": "1", "run": run and (run.as_bucket() | fields)}}

    _on_Run = _on_RunState = _on_QueryRunInfo = _on_RunHistoryKeys = _project

    def _on_Runs(self, said: dict[str, Any]) -> dict[str, Any]:
        runs = [run.as_bucket() for run in self.runs.values() if run.project == said["project"]]
        if not runs:
            return {"project": None}
        edges = [{"node": run, "cursor": run["name"]} for run in runs]
        page = {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}
        return {
            "project": {"internalId": "1", "runCount": len(runs), "readOnly": False, "runs": page}
        }

    def _on_HistoryPage(self, said: dict[str, Any]) -> dict[str, Any]:
        rows = self.runs[said["project"], said["run"]].history
        page = [
            json.dumps(row) for row in rows if said["minStep"] <= row["_step"] < said["maxStep"]
        ]
        return self._project(said, history=page)

    def _on_RunParquetHistory(self, said: dict[str, Any]) -> dict[str, Any]:
        rows = self.runs[said["project"], said["runName"]].history
        return self._project(said, parquetHistory={"parquetUrls": [], "liveData": rows})

    def _on_RunSampledHistory(self, said: dict[str, Any]) -> dict[str, Any]:
        rows = self.runs[said["project"], said.get("name") or said["run"]].history
        sampled = []
        for spec in said.get("specs") or [said["spec"]]:
            keys = set(json.loads(spec).get("keys") or [])
            sampled.append(
                [{k: row[k] for k in keys | {"_step"}} for row in rows if keys <= row.keys()]
            )
        return self._project(said, sampledHistory=sampled)

    _on_SampledHistoryPage = _on_RunSampledHistory

    def _on_RunFullHistory(self, said: dict[str, Any]) -> dict[str, Any]:
        history = self.runs[said["project"], said["name"]].streams.get("wandb-history.jsonl", [])
        return self._project(said, history=history, events=[])

    # What logs an artifact asks for.

    def _on_ArtifactType(self, said: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _on_CreateArtifact(self, said: dict[str, Any]) -> dict[str, Any]:
        self.artifacts.append(said["input"] | {"state": "PENDING"})
        told = {
            "id": str(len(self.artifacts) - 1),
            "state": "PENDING",
            "artifactSequence": {"latestArtifact": None},
        }
        return {"createArtifact": {"artifact": told}}

    def _on_CreateArtifactManifest(self, said: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.url}/artifacts/{said['artifactID']}/{said['name']}"
        file = {"id": "f", "uploadUrl": url, "uploadHeaders": []}
        return {
            "createArtifactManifest": {"artifactManifest": {"id": said["artifactID"], "file": file}}
        }

    def _on_CreateArtifactFiles(self, said: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for file in said["input"]["artifactFiles"]:
            path = f"artifacts/{file['artifactID']}/{file['name']}"
            node = {"storagePath": path, "uploadUrl": f"{self.url}/{path}", "uploadHeaders": []}
            edges.append(
                {
                    "node": node
                    | {"uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}
                }
            )
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _on_CommitArtifact(self, said: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[int(said["artifactID"])]
        artifact["state"] = "COMMITTED"
        return {
            "commitArtifact": {"artifact": {"id": said["artifactID"], "digest": artifact["digest"]}}
        }

    def _on_ArtifactByID(self, said: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[int(said["id"])]
        project = {"id": "p", "internalId": "1", "name": artifact["projectName"], "entity": ACCOUNT}
        sequence = {
            "__typename": "ArtifactSequence",
            "id": "s",
            "name": artifact["artifactCollectionName"],
        }
        known = {
            **{
                "__typename": "Artifact",
                "id": said["id"],
                "state": artifact["state"],
                "digest": artifact["digest"],
            },
            **{
                "artifactSequence": sequence | {"project": project},
                "versionIndex": 0,
                "size": 0,
                "fileCount": 0,
            },
            **{
                "artifactType": {"name": artifact["artifactTypeName"]},
                "ttlDurationSeconds": -1,
                "tags": [],
            },
            **{"ttlIsInherited": True, "createdAt": LONG_AGO, "aliases": []},
            **dict.fromkeys(("description", "metadata", "historyStep", "commitHash", "updatedAt")),
        }
        return {"artifact": known}

    # What saves workspaces and reports.

    def _on_upsertView(self, said: dict[str, Any]) -> dict[str, Any]:
        self.views.append(said)
        project = {"id": "p", "name": said["projectName"], "entityName": said["entityName"]}
        return {
            "upsertView": {
                "view": {**said, "id": f"view{len(self.views)}", "project": project},
                "inserted": True,
            }
        }

    _on_UpsertView2 = _on_upsertView

    def _on_GetProjects(self, said: dict[str, Any]) -> dict[str, Any]:
        projects = dict.fromkeys(run.project for run in self.runs.values())
        described = {
            "entityName": said["entity"],
            "createdAt": LONG_AGO,
            "isBenchmark": False,
            "user": None,
        }
        edges = [
            {"node": {"__typename": "Project", "id": "p", "name": name, **described}}
            for name in projects
        ]
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        return {"models": {"edges": edges, "pageInfo": page}}

    def _on_ProjectInternalId(self, said: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"id": "p", "internalId": "1"}}

    # What `wandb sweep` and `wandb agent` ask for.

    def _on_UpsertSweep(self, said: dict[str, Any]) -> dict[str, Any]:
        project = said["projectName"] or "uncategorized"
        sweep = StoredSweep(f"sweep{len(self.sweeps)}", project, said["config"])
        self.sweeps[sweep.name] = sweep
        told = {"name": sweep.name, "project": {"id": "p", "name": project, "entity": ACCOUNT}}
        return {"upsertSweep": {"sweep": told, "configValidationWarnings": []}}

    def _on_SweepWithRuns(self, said: dict[str, Any]) -> dict[str, Any]:
        sweep = self.sweeps[said["sweep"]]
        return {
            "project": {"sweep": {"id": sweep.name, "config": sweep.text, "runs": {"edges": []}}}
        }

    def _on_CreateAgent(self, said: dict[str, Any]) -> dict[str, Any]:
        return {"createAgent": {"agent": {"id": said["sweep"]}}}

    def _on_Heartbeat(self, said: dict[str, Any]) -> dict[str, Any]:
        commands = self.sweeps[said["id"]].commands([*json.loads(said["runState"])])
        return {"agentHeartbeat": {"agent": {"id": said["id"]}, "commands": json.dumps(commands)}}


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    owner: WandbServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        answer = self.server.owner.answer(self.command, self.path, self._body())
        is_file = isinstance(answer, bytes)
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(404 if answer is None else 200)
        self.send_header(
            "Content-Type", "application/octet-stream" if is_file else "application/json"
        )
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
