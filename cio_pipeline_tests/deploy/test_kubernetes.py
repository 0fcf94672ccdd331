"""The runs of deploy/values.yaml: Jobs as Dagster's `K8sRunLauncher` asks Kubernetes for them, each a process of this machine.

The values are put where Dagster's chart (1.13) puts them; that the chart does so is not tested. It takes three minutes:
`make test-kubernetes`.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.storage.tags import DOCKER_IMAGE_TAG, PARENT_RUN_ID_TAG

from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.posthog.product import days as product_days
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline.state.ledger import Ledger
from cio_pipeline_tests.bucket import CREDENTIALS, s3
from cio_pipeline_tests.deploy.files import read
from cio_pipeline_tests.deploy.fleet import Fleet, services, start_dagster
from cio_pipeline_tests.deploy.kubernetes_api import Cluster, serve
from cio_pipeline_tests.postgres import PASSWORD

pytestmark = pytest.mark.kubernetes

DAYS = ("2026-03-01", "2026-03-02", "2026-03-03")
RUN_SECONDS = 180
KUBERNETES = "1.33"
"""The version by whose schema a Job is checked."""

VALUES = read("values.yaml")
[DEPLOYMENT] = VALUES["dagster-user-deployments"]["deployments"]
IMAGE = f"{DEPLOYMENT['image']['repository']}:{DEPLOYMENT['image']['tag']}"
IN_CONFIG_MAP, IN_SECRET = "dagster-cio-pipeline-user-env", "cio-pipeline"
SECRETS = {"CUSTOMERIO_SITE_ID", "CUSTOMERIO_API_KEY", "POSTHOG_PERSONAL_API_KEY", "CIO_LEDGER_URL"}
BUCKET_SECRETS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
LAUNCH = """mutation ($run: ExecutionParams!) { launchRun(executionParams: $run) {
  ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
TERMINATE = "mutation ($id: String!) { terminateRun(runId: $id) { __typename } }"


def snake(of: Any) -> Any:
    """The keys of a part of the values as Dagster's own configuration has them."""
    return {re.sub("(?<=[a-z0-9])([A-Z])", r"_\1", key).lower(): value for key, value in of.items()}


def container_context() -> dict[str, Any]:
    """What the chart gives the code location to hand on to its runs, as includeConfigInLaunchedRuns asks for."""
    copied = {name: DEPLOYMENT[name] for name in ("volumeMounts", "volumes", "resources")}
    context = {
        "image_pull_policy": DEPLOYMENT["image"]["pullPolicy"],
        "env_config_maps": [IN_CONFIG_MAP],
        "env_secrets": [secret["name"] for secret in DEPLOYMENT["envSecrets"]],
        "namespace": "default",
        "service_account_name": "dagster-user-deployments",
        "run_k8s_config": {"pod_spec_config": {"automount_service_account_token": True}},
    }
    return {"k8s": context | snake(copied)}


def dagster_yaml(found: Fleet, kubeconfig: Path) -> dict[str, Any]:
    """The instance as the chart makes it, but for where PostgreSQL and Kubernetes are, and a shorter look at the runs."""
    given, daemon, database = VALUES["postgresql"], VALUES["dagsterDaemon"], sa.make_url(found.database.url)
    postgres = {
        "username": database.username,
        "password": {"env": "DAGSTER_PG_PASSWORD"},
        "hostname": database.host,
        "port": database.port,
        "db_name": given["postgresqlDatabase"],
        "scheme": given["postgresqlScheme"],
    }
    ours = snake(VALUES["runLauncher"]["config"]["k8sRunLauncher"])
    launcher = {
        "load_incluster_config": False,
        "kubeconfig_file": str(kubeconfig),
        "job_namespace": "default",
        "service_account_name": "dagster",
        "dagster_home": str(found.folder / "dagster"),
        "instance_config_map": "dagster-instance",
        "postgres_password_secret": VALUES["global"]["postgresqlSecretName"],
        **ours,
        "run_k8s_config": snake(ours["run_k8s_config"]),
    }
    queue = snake(daemon["runCoordinator"]["config"]["queuedRunCoordinator"])
    return {
        "storage": {"postgres": {"postgres_db": postgres}},
        "run_launcher": {"module": "dagster_k8s", "class": VALUES["runLauncher"]["type"], "config": launcher},
        "run_coordinator": {"module": "dagster.core.run_coordinator", "class": "QueuedRunCoordinator", "config": queue},
        "run_monitoring": {**snake(daemon["runMonitoring"]), "poll_interval_seconds": 2},
        "python_logs": snake(VALUES["pythonLogs"]),
        "telemetry": VALUES["telemetry"],
        **VALUES["additionalInstanceConfig"],
    }


@dataclass
class Kubernetes:
    """Dagster on the stand-in, and the Customer.io that its runs send to."""

    dagster: Fleet
    cluster: Cluster
    workspace: customerio.CustomerioServer
    instance: DagsterInstance
    under_way: threading.Event = field(default_factory=threading.Event)

    def launch(self, day: str) -> str:
        """A run of the day; gives its id."""
        selector = {"repositoryLocationName": "cio_pipeline", "repositoryName": "__repository__", "jobName": "customerio_sync"}
        tags = [{"key": "dagster/partition", "value": day}]
        launched = self.dagster.ask(LAUNCH, run={"selector": selector, "executionMetadata": {"tags": tags}})
        return str(launched["launchRun"]["run"]["runId"])

    def ended(self, run_id: str) -> DagsterRun:
        """The run, once it has ended."""

        def finished() -> DagsterRun | None:
            run = self.instance.get_run_by_id(run_id)
            return run if run is not None and run.is_finished else None

        found: DagsterRun = self.dagster.until(finished, RUN_SECONDS)
        return found

    def launch_and_wait_until_it_sends(self, day: str) -> str:
        """A run of the day whose first batch Customer.io takes, and answers much later; gives its id."""
        self.under_way.clear()
        self.workspace.faults = self._slow
        run_id = self.launch(day)
        assert self.under_way.wait(RUN_SECONDS)
        self.workspace.faults = None
        return run_id

    def _slow(self, _: int, path: str) -> Any:
        if not path.endswith("batch"):
            return None
        self.under_way.set()
        return "slow"

    def is_delivered_once(self, day: str) -> bool:
        """Whether Customer.io has as many events of the day as the ledger, and there are any."""
        begins = datetime.fromisoformat(f"{day}T00:00Z").timestamp()
        times = (one.timestamp for person in self.workspace.workspace.people() for one in person.activities)
        there = sum(begins <= time < begins + 86400 for time in times)
        ledger = Ledger(self.dagster.settings["CIO_LEDGER_URL"])
        try:
            return 0 < there == ledger.events_delivered([day])[day]
        finally:
            ledger.close()

    def batches(self) -> int:
        """How many requests with data Customer.io has had."""
        return sum(request.path.endswith("batch") for request in self.workspace.requests)


@pytest.fixture(scope="module")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubernetes]:
    """Dagster with the values of deploy/values.yaml, on three days of events."""
    folder = tmp_path_factory.mktemp("kubernetes")
    events = list(product_days(1, date.fromisoformat(DAYS[0]), len(DAYS), 20))
    with posthog.serve(events) as source, customerio.serve(slow_seconds=60) as workspace, s3("bucket") as bucket:
        made = Sandbox(source.url, workspace.url).environment(folder, date.fromisoformat(DAYS[0]))
        with services(folder, {"DAGSTER_PG_PASSWORD": PASSWORD}) as found:
            here = {name: made[name] for name in ("POSTHOG_HOST", "CUSTOMERIO_TRACKING_ENDPOINT", "CIO_START_DATE")}
            here |= {
                "TMPDIR": str(folder),
                "AWS_ENDPOINT_URL": bucket,
                "AWS_DEFAULT_REGION": "us-east-1",
                "CIO_JSON_LOGS": "Yes",
            }
            secret = {**made, **CREDENTIALS, "CIO_LEDGER_URL": found.settings["CIO_LEDGER_URL"]}
            secrets = {IN_SECRET: {name: secret[name] for name in SECRETS | BUCKET_SECRETS}}
            secrets[VALUES["global"]["postgresqlSecretName"]] = {"postgresql-password": PASSWORD}
            settings = {**DEPLOYMENT["env"], **here}
            with serve(Cluster(folder, {"configMapRef": {IN_CONFIG_MAP: settings}, "secretRef": secrets})) as cluster:
                kubeconfig = folder / "kubeconfig.yaml"
                of = {"clusters": [{"name": "here", "cluster": {"server": cluster.url}}], "users": [{"name": "me", "user": {}}]}
                of |= {"contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}]}
                kubeconfig.write_text(yaml.safe_dump({**of, "current-context": "here"}))
                found.settings |= settings | secrets[IN_SECRET] | {"DAGSTER_CURRENT_IMAGE": IMAGE}
                found.settings["DAGSTER_CLI_API_GRPC_CONTAINER_CONTEXT"] = json.dumps(container_context())
                start_dagster(found, dagster_yaml(found, kubeconfig))
                with pytest.MonkeyPatch.context() as patch:
                    patch.setenv("DAGSTER_PG_PASSWORD", PASSWORD)
                    with DagsterInstance.from_config(str(folder / "dagster")) as instance:
                        yield Kubernetes(found, cluster, workspace, instance)


def test_a_run_is_one_pod_with_what_the_values_say_and_delivers_its_day_once(kubernetes: Kubernetes) -> None:
    import kubernetes_validate

    run = kubernetes.ended(kubernetes.launch(DAYS[0]))
    assert run.status == DagsterRunStatus.SUCCESS
    [job] = [job for job in kubernetes.cluster.jobs.values() if job["metadata"]["labels"]["dagster/run-id"] == run.run_id]
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    labels = {name: job["metadata"]["labels"][f"dagster/{name}"] for name in ("job", "code-location")}
    assert labels == {"job": "customerio_sync", "code-location": "cio_pipeline"}
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert (spec["backoffLimit"], pod["restartPolicy"]) == (0, "Never"), "one pod, and Dagster decides on another"
    assert spec["ttlSecondsAfterFinished"] == 86400
    [container] = pod["containers"]
    assert container["image"] == IMAGE == run.tags[DOCKER_IMAGE_TAG]
    assert container["args"][:3] == ["dagster", "api", "execute_run"]
    assert container["resources"] == DEPLOYMENT["resources"]
    assert container["envFrom"] == [{"configMapRef": {"name": IN_CONFIG_MAP}}, {"secretRef": {"name": IN_SECRET}}]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} >= {"/scratch", "/tmp"}
    assert DEPLOYMENT["volumes"][0] in pod["volumes"]
    assert container["securityContext"] == DEPLOYMENT["securityContext"]
    assert pod["securityContext"] == DEPLOYMENT["podSecurityContext"]
    assert run.tags.keys() >= {"posthog", "customerio"}, "what a run says of itself reaches Dagster's storage"
    log = (kubernetes.cluster.folder / f"pod-dagster-run-{run.run_id}.log").read_text()
    logged = [json.loads(line) for line in log.splitlines() if line.startswith('{"time": ')]
    assert {(line["run_id"], line["day"]) for line in logged} == {(run.run_id, DAYS[0])}
    assert kubernetes.is_delivered_once(DAYS[0])
    before = kubernetes.batches()
    assert kubernetes.ended(kubernetes.launch(DAYS[0])).status == DagsterRunStatus.SUCCESS
    assert kubernetes.batches() == before


def test_a_pod_that_is_killed_ends_its_run_in_a_sentence_and_dagsters_retry_delivers_the_day_once(
    kubernetes: Kubernetes,
) -> None:
    run_id = kubernetes.launch_and_wait_until_it_sends(DAYS[1])
    kubernetes.cluster.kill(f"dagster-run-{run_id}")
    assert kubernetes.ended(run_id).status == DagsterRunStatus.FAILURE
    [failure] = kubernetes.instance.all_logs(run_id, of_type=DagsterEventType.RUN_FAILURE)
    assert "Run has not completed but K8s job has no active pods" in str(failure.get_dagster_event().message)
    again = RunsFilter(tags={PARENT_RUN_ID_TAG: run_id})
    retry = kubernetes.dagster.until(lambda: kubernetes.instance.get_runs(again), RUN_SECONDS)[0]
    assert kubernetes.ended(retry.run_id).status == DagsterRunStatus.SUCCESS
    assert kubernetes.is_delivered_once(DAYS[1])


def test_a_run_that_is_terminated_leaves_no_job_and_no_lock(kubernetes: Kubernetes) -> None:
    run_id = kubernetes.launch_and_wait_until_it_sends(DAYS[2])
    kubernetes.dagster.ask(TERMINATE, id=run_id)
    assert kubernetes.ended(run_id).status == DagsterRunStatus.CANCELED
    name = f"dagster-run-{run_id}"
    assert name in kubernetes.cluster.deleted
    assert kubernetes.cluster.pods[name].poll() is not None
    ledger = Ledger(kubernetes.dagster.settings["CIO_LEDGER_URL"])
    with ledger.hold_delivery_lock(lambda: pytest.fail("the lock is still held")):
        pass
    ledger.close()
    assert kubernetes.ended(kubernetes.launch(DAYS[2])).status == DagsterRunStatus.SUCCESS
    assert kubernetes.is_delivered_once(DAYS[2])
