"""The Kubernetes manifests: valid by Kubernetes' own schemas, and consistent with each other."""

import copy
import re
import warnings
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy import ray_service_fields
from tests.deploy.manifests import DEPLOY, DOCKERFILES, PROJECT, documents, pins, settings_of

KUBERNETES = "1.37"
FILES = sorted((DEPLOY / "kuberay").glob("*.yaml"))
SERVICES = {"rayservice-cpu.yaml": "many-cpus", "rayservice-gpu.yaml": "many-gpus"}
UNITS = {"m": 1e-3, "": 1.0, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}

services = pytest.mark.parametrize("name", SERVICES)


def quantity(value: object) -> float:
    match = re.fullmatch(r"([\d.]+)(\w*)", str(value))
    assert match is not None
    number, unit = match.groups()
    return float(number) * UNITS[unit]


def ray_service(name: str) -> dict[str, Any]:
    (service,) = (
        document for document in documents(DEPLOY / "kuberay" / name) if document["kind"] == "RayService"
    )
    return service


def config_of(name: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(ray_service(name)["spec"]["serveConfigV2"])
    return config


def groups(name: str) -> dict[str, dict[str, Any]]:
    """The head's and the workers' groups by name."""
    cluster = ray_service(name)["spec"]["rayClusterConfig"]
    return {"head": cluster["headGroupSpec"]} | {
        group["groupName"]: group for group in cluster["workerGroupSpecs"]
    }


def workers(name: str) -> dict[str, dict[str, Any]]:
    return {group: spec for group, spec in groups(name).items() if group != "head"}


def pod_templates() -> Iterator[tuple[str, dict[str, Any]]]:
    for file in FILES:
        for document in documents(file):
            if document["kind"] == "RayService":
                for group, spec in groups(file.name).items():
                    yield f"{file.name} {group}", spec["template"]
            elif document["kind"] == "StatefulSet":
                yield f"{file.name} {document['metadata']['name']}", document["spec"]["template"]


def check(document: dict[str, Any]) -> None:
    with warnings.catch_warnings():  # it does not close its files
        warnings.simplefilter("ignore", ResourceWarning)
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


templates = pytest.mark.parametrize(
    "template", [pytest.param(template, id=where) for where, template in pod_templates()]
)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_kubernetes_understands_every_object(file: Path) -> None:
    names = set()
    for document in documents(file):
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", document["metadata"]["name"])
        names.add((document["kind"], document["metadata"]["name"]))
        if document["kind"] != "RayService":
            check(document)
    assert len(names) == len(documents(file))


@templates
def test_kubernetes_understands_every_pod(template: dict[str, Any]) -> None:
    check({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "probe"}, "template": template})


def test_a_misspelt_field_would_be_found() -> None:
    template = {"spec": {"containers": [{"name": "a", "image": "a", "imagePulPolicy": "Always"}]}}
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePulPolicy"):
        check(
            {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "probe"}, "template": template}
        )


@services
def test_kuberay_understands_it(name: str) -> None:
    document = ray_service(name)
    assert document.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert document["apiVersion"] == "ray.io/v1"
    assert ray_service_fields.faults(document["spec"]) == []


def test_the_table_of_kuberays_fields_has_no_others() -> None:
    used = {field.path for name in SERVICES for field in ray_service_fields.fields(ray_service(name)["spec"])}
    assert used == ray_service_fields.TYPES.keys()


def test_the_table_is_of_the_version_that_the_readme_installs() -> None:
    readme = (DEPLOY / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"--version (\S+)$", readme, re.MULTILINE) == [ray_service_fields.KUBERAY]
    assert set(re.findall(r"KubeRay (\d[\d.]*\d)", readme)) == {ray_service_fields.KUBERAY}


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("rayClusterDeletionDelaySecond", 1, "is not in the table of fields"),
        ("rayClusterConfig.autoscalerOptions.idleTimeoutSeconds", "300", "no int32"),
        ("rayClusterConfig.enableInTreeAutoscaling", "true", "no boolean"),
        ("rayClusterConfig.rayVersion", 2.6, "no string"),
        ("rayClusterConfig.headGroupSpec.rayStartParams.num-cpus", 0, "no string"),
        ("rayClusterConfig.autoscalerOptions.version", "v3", "none of ['v1', 'v2']"),
        ("rayClusterConfig.autoscalerOptions.resources.limits.cpu", "half", "no quantity"),
        ("rayClusterDeletionDelaySeconds", -1, "less than 0"),
        ("rayClusterConfig.workerGroupSpecs", [{}], "[0].groupName is missing"),
        ("rayClusterConfig.workerGroupSpecs", {}, "no array"),
    ],
)
def test_a_field_that_kuberay_would_drop_or_refuse_is_found(path: str, value: object, fault: str) -> None:
    spec = copy.deepcopy(ray_service("rayservice-gpu.yaml")["spec"])
    *parents, key = path.split(".")
    reduce(dict.__getitem__, parents, spec)[key] = value
    faults = ray_service_fields.faults(spec)
    assert faults and fault in faults[0] and all(path in sentence for sentence in faults)


@services
def test_the_cluster_is_as_the_operator_demands(name: str) -> None:
    """What KubeRay 1.7.0's operator checks beyond types, of what these manifests use."""
    spec = ray_service(name)["spec"]
    cluster = spec["rayClusterConfig"]
    assert spec["upgradeStrategy"] == {"type": "NewCluster"}
    assert cluster["authOptions"] == {"mode": "token"}  # needs Ray 2.52
    assert [int(part) for part in cluster["rayVersion"].split(".")] >= [2, 52, 0]
    assert cluster["enableInTreeAutoscaling"] is True
    for group in groups(name).values():
        duplicated = {"num-cpus", "num-gpus", "memory", "resources"} & group["rayStartParams"].keys()
        assert not (duplicated and group.get("resources")), "Ray's resources come from one place only"
        assert not {"labels", "redis-password", "redis-username"} & group["rayStartParams"].keys()
        assert group["template"]["spec"].get("restartPolicy", "Never") == "Never", "with autoscaler v2"
        names = {variable["name"] for variable in group["template"]["spec"]["containers"][0].get("env", ())}
        assert not names & {"REDIS_PASSWORD", "RAY_REDIS_ADDRESS", "RAY_enable_autoscaler_v2"}


@services
def test_the_config_in_it_is_the_file(name: str) -> None:
    file = DEPLOY / "serve" / f"{SERVICES[name]}.yaml"
    text = ray_service(name)["spec"]["serveConfigV2"]
    assert yaml.safe_load(text) == yaml.safe_load(file.read_text(encoding="utf-8"))
    assert text.strip() == file.read_text(encoding="utf-8").strip(), "its comments too"


@services
def test_versions_are_those_of_the_image(name: str) -> None:
    cluster = ray_service(name)["spec"]["rayClusterConfig"]
    assert {cluster["rayVersion"]} == {pins(file)["ray"] for file in ("image", "image-cuda")}
    (allowed,) = (line for line in PROJECT["dependencies"] if line.startswith("ray["))
    bounds = re.search(r">=([\d.]+),<([\d.]+)", allowed)
    assert bounds is not None
    low, high = bounds.groups()
    version = [int(part) for part in cluster["rayVersion"].split(".")]
    assert [int(part) for part in low.split(".")] <= version < [int(part) for part in high.split(".")]
    suffix = "-cuda" if "gpu" in name else ""
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups(name).values()}
    assert images == {f"safelight:{PROJECT['version']}{suffix}"}, (
        "one image, because all nodes must have the same Python and Ray"
    )


@services
def test_the_head_draws_nothing(name: str) -> None:
    assert groups(name)["head"]["rayStartParams"]["num-cpus"] == "0"
    assert ray_service(name)["spec"]["excludeHeadPodFromServeSvc"] is True


@services
def test_ports_have_one_name_and_one_number(name: str) -> None:
    named: dict[str, int] = {}
    for group in groups(name).values():
        for port in group["template"]["spec"]["containers"][0]["ports"]:
            assert named.setdefault(port["name"], port["containerPort"]) == port["containerPort"]
    assert named["serve"] == config_of(name)["http_options"]["port"]
    assert {"serve", "metrics"} <= {
        p["name"] for g in workers(name).values() for p in g["template"]["spec"]["containers"][0]["ports"]
    }


@templates
def test_a_pod_asks_for_no_more_than_it_may_have(template: dict[str, Any]) -> None:
    for container in template["spec"]["containers"]:
        requests, limits = container["resources"]["requests"], container["resources"]["limits"]
        assert requests.keys() >= {"cpu", "memory"} and "memory" in limits
        assert all(
            quantity(requests[kind]) <= quantity(limits[kind]) for kind in requests.keys() & limits.keys()
        )
        assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu"), "Kubernetes wants them equal"
        assert requests["memory"] == limits["memory"], "a container over its memory request is killed first"


@templates
def test_no_pod_runs_as_root_or_may_become_root(template: dict[str, Any]) -> None:
    pod = template["spec"]["securityContext"]
    assert pod["runAsNonRoot"] is True and pod["runAsUser"] > 0 and pod["fsGroup"] == pod["runAsGroup"] > 0
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in template["spec"]["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


@services
def test_the_user_is_the_one_of_the_image(name: str) -> None:
    for group in groups(name).values():
        security = group["template"]["spec"]["securityContext"]
        for dockerfile in DOCKERFILES:
            assert f"USER {security['runAsUser']}:{security['runAsGroup']}\n" in dockerfile.read_text(
                encoding="utf-8"
            )


@services
def test_a_node_that_shuts_down_lets_images_finish(name: str) -> None:
    """Ray drains longer than a replica; the grace period and the old cluster outlast every request."""
    drain = settings_of(DEPLOY / "serve" / f"{SERVICES[name]}.yaml")["shutdown_seconds"]
    for group in workers(name).values():
        spec = group["template"]["spec"]
        (container,) = spec["containers"]
        pause = re.fullmatch(r"sleep (\d+)", container["lifecycle"]["preStop"]["exec"]["command"][-1])
        assert pause is not None
        of_ray = next(
            int(variable["value"])
            for variable in container["env"]
            if variable["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
        )
        assert drain < of_ray < int(pause[1]) + of_ray <= spec["terminationGracePeriodSeconds"] - 20
    assert (
        ray_service(name)["spec"]["rayClusterDeletionDelaySeconds"]
        > config_of(name)["http_options"]["request_timeout_s"]
    )


def test_ray_has_the_drain_that_the_manifests_set() -> None:
    from ray._private import ray_constants

    assert isinstance(ray_constants.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, float)


@services
def test_a_worker_is_ready_when_ray_and_its_proxy_are(name: str) -> None:
    for group in workers(name).values():
        probe = group["template"]["spec"]["containers"][0]["readinessProbe"]
        script = probe["exec"]["command"][-1]
        assert re.findall(r"http://localhost:(\d+)(/\S+)", script) == [
            ("52365", "/api/healthz"),
            ("8000", "/-/healthz"),
        ]
        assert " && " in script
        seconds = [int(timeout) for timeout in re.findall(r"-T (\d+)", script)]
        assert sum(seconds) < probe["timeoutSeconds"], "wget gives up before Kubernetes does"


@services
def test_the_autoscaler_has_room_for_every_replica(name: str) -> None:
    """The most replicas of every stage fit the most pods of every group, the least fit the least."""
    settings = settings_of(DEPLOY / "serve" / f"{SERVICES[name]}.yaml")
    ends = {
        stage: [int(n) for n in (settings[f"{stage}_replicas"].split("-") * 2)[:2]]
        for stage in ("gateway", "encode", "denoise", "decode")
    }
    for end, field in enumerate(("minReplicas", "maxReplicas")):
        gpus = sum(
            ends[stage][end] * settings.get(f"{stage}_gpus", 0) for stage in ("encode", "denoise", "decode")
        )
        pods = {group: spec[field] for group, spec in workers(name).items()}
        if "gpu" in pods:
            shared = sum(ends[stage][end] * settings[f"{stage}_gpus"] for stage in ("encode", "decode"))
            assert (
                pods["gpu"] == ends["denoise"][end] * settings["denoise_gpus"] + 1
                and shared <= 1
                and gpus <= pods["gpu"]
            )
            assert pods["gateway"] == ends["gateway"][end], "each gateway asks for a node of its own"
        else:
            assert pods["cpu"] == max(ends["denoise"][end], ends["gateway"][end])
    assert all(
        spec["minReplicas"] <= spec["replicas"] <= spec["maxReplicas"] for spec in workers(name).values()
    )


@services
def test_every_replica_fits_some_node(name: str) -> None:
    (application,) = config_of(name)["applications"]
    for deployment in application["deployments"]:
        options = deployment.get("ray_actor_options", {})
        fitting = [
            group
            for group, spec in workers(name).items()
            if options.get("num_cpus", 0)
            <= quantity(spec["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
            and all(
                float(spec.get("resources", {}).get(kind, 0)) >= number
                for kind, number in options.get("resources", {}).items()
            )
        ]
        assert fitting, deployment["name"]


def test_gpu_workers_select_and_tolerate_gpu_nodes() -> None:
    for group, spec in workers("rayservice-gpu.yaml").items():
        pod = spec["template"]["spec"]
        has_gpu = "nvidia.com/gpu" in pod["containers"][0]["resources"]["limits"]
        assert has_gpu == (group == "gpu") == ("nodeSelector" in pod) == ("tolerations" in pod)
    (toleration,) = workers("rayservice-gpu.yaml")["gpu"]["template"]["spec"]["tolerations"]
    assert toleration == {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}


@services
def test_redis_is_the_one_that_is_deployed(name: str) -> None:
    options = ray_service(name)["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]
    service, stateful = documents(DEPLOY / "kuberay" / "redis.yaml")
    (port,) = service["spec"]["ports"]
    assert options["redisAddress"] == f"{service['metadata']['name']}:{port['port']}"
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    (variable,) = container["env"]
    assert options["redisPassword"]["valueFrom"] == variable["valueFrom"], "one Secret"
    assert (
        service["spec"]["selector"]
        == stateful["spec"]["selector"]["matchLabels"]
        == stateful["spec"]["template"]["metadata"]["labels"]
    )
    assert stateful["spec"]["serviceName"] == service["metadata"]["name"]
    assert port["targetPort"] in {p["name"] for p in container["ports"]}
    claimed = {claim["metadata"]["name"] for claim in stateful["spec"]["volumeClaimTemplates"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == claimed


def test_no_file_holds_a_password() -> None:
    for file in FILES:
        assert all(document["kind"] != "Secret" for document in documents(file))


@services
def test_every_disruption_budget_matches_pods_and_allows_an_eviction(name: str) -> None:
    """With as many required pods as there are, no node could be drained."""
    budgets = [
        document
        for document in documents(DEPLOY / "kuberay" / name)
        if document["kind"] == "PodDisruptionBudget"
    ]
    covered = set()
    for budget in budgets:
        labels = budget["spec"]["selector"]["matchLabels"].items()
        (group,) = (
            group
            for group, spec in groups(name).items()
            if labels <= spec["template"]["metadata"]["labels"].items()
        )
        assert isinstance(budget["spec"]["minAvailable"], int), (
            "all that Kubernetes counts for pods of a custom resource"
        )
        assert budget["spec"]["minAvailable"] < groups(name)[group]["minReplicas"]
        covered.add(group)
    assert covered == workers(name).keys()


@services
def test_spread_constraints_select_their_own_pods(name: str) -> None:
    for spec in workers(name).values():
        for constraint in spec["template"]["spec"].get("topologySpreadConstraints", []):
            assert (
                constraint["labelSelector"]["matchLabels"].items()
                <= spec["template"]["metadata"]["labels"].items()
            )
