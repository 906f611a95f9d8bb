"""The fields of a RayService that the manifests use, as KubeRay defines them, and a strict check of them.

Read from `helm-chart/kuberay-operator/crds/ray.io_rayservices.yaml`, version `v1`, of KubeRay 1.7.0
(commit 59d663aeec13760646da3db9c1cf8cfe883e30b7). The API server silently drops fields
that it does not know. For another version of KubeRay, or another field, read that file again.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

KUBERAY = "1.7.0"
QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|[MGTPE]|[KMGTPE]i)?")  # without Kubernetes' rarer forms
INT32 = range(-(2**31), 2**31)
# `[]` stands for every item of a list, `*` for every key of a map. "pod" is a PodTemplateSpec, which is
# checked against the schemas of Kubernetes itself.
TYPES = {
    "spec": "object",
    "spec.excludeHeadPodFromServeSvc": "boolean",
    "spec.rayClusterDeletionDelaySeconds": "int32",
    "spec.serveConfigV2": "string",
    "spec.upgradeStrategy": "object",
    "spec.upgradeStrategy.type": "string",
    "spec.rayClusterConfig": "object",
    "spec.rayClusterConfig.authOptions": "object",
    "spec.rayClusterConfig.authOptions.mode": "string",
    "spec.rayClusterConfig.autoscalerOptions": "object",
    "spec.rayClusterConfig.autoscalerOptions.idleTimeoutSeconds": "int32",
    "spec.rayClusterConfig.autoscalerOptions.imagePullPolicy": "string",
    "spec.rayClusterConfig.autoscalerOptions.resources": "object",
    "spec.rayClusterConfig.autoscalerOptions.resources.limits": "object",
    "spec.rayClusterConfig.autoscalerOptions.resources.limits.*": "quantity",
    "spec.rayClusterConfig.autoscalerOptions.resources.requests": "object",
    "spec.rayClusterConfig.autoscalerOptions.resources.requests.*": "quantity",
    "spec.rayClusterConfig.autoscalerOptions.securityContext": "object",
    "spec.rayClusterConfig.autoscalerOptions.securityContext.allowPrivilegeEscalation": "boolean",
    "spec.rayClusterConfig.autoscalerOptions.securityContext.capabilities": "object",
    "spec.rayClusterConfig.autoscalerOptions.securityContext.capabilities.drop": "array",
    "spec.rayClusterConfig.autoscalerOptions.securityContext.capabilities.drop[]": "string",
    "spec.rayClusterConfig.autoscalerOptions.upscalingMode": "string",
    "spec.rayClusterConfig.autoscalerOptions.version": "string",
    "spec.rayClusterConfig.enableInTreeAutoscaling": "boolean",
    "spec.rayClusterConfig.gcsFaultToleranceOptions": "object",
    "spec.rayClusterConfig.gcsFaultToleranceOptions.redisAddress": "string",
    "spec.rayClusterConfig.gcsFaultToleranceOptions.redisPassword": "object",
    "spec.rayClusterConfig.gcsFaultToleranceOptions.redisPassword.valueFrom": "object",
    "spec.rayClusterConfig.gcsFaultToleranceOptions.redisPassword.valueFrom.secretKeyRef": "object",
    "spec.rayClusterConfig.gcsFaultToleranceOptions.redisPassword.valueFrom.secretKeyRef.key": "string",
    "spec.rayClusterConfig.gcsFaultToleranceOptions.redisPassword.valueFrom.secretKeyRef.name": "string",
    "spec.rayClusterConfig.headGroupSpec": "object",
    "spec.rayClusterConfig.headGroupSpec.rayStartParams": "object",
    "spec.rayClusterConfig.headGroupSpec.rayStartParams.*": "string",
    "spec.rayClusterConfig.headGroupSpec.template": "pod",
    "spec.rayClusterConfig.rayVersion": "string",
    "spec.rayClusterConfig.workerGroupSpecs": "array",
    "spec.rayClusterConfig.workerGroupSpecs[]": "object",
    "spec.rayClusterConfig.workerGroupSpecs[].groupName": "string",
    "spec.rayClusterConfig.workerGroupSpecs[].maxReplicas": "int32",
    "spec.rayClusterConfig.workerGroupSpecs[].minReplicas": "int32",
    "spec.rayClusterConfig.workerGroupSpecs[].rayStartParams": "object",
    "spec.rayClusterConfig.workerGroupSpecs[].rayStartParams.*": "string",
    "spec.rayClusterConfig.workerGroupSpecs[].replicas": "int32",
    "spec.rayClusterConfig.workerGroupSpecs[].resources": "object",
    "spec.rayClusterConfig.workerGroupSpecs[].resources.*": "string",
    "spec.rayClusterConfig.workerGroupSpecs[].template": "pod",
}
REQUIRED = {
    "spec": {"rayClusterConfig"},
    "spec.rayClusterConfig": {"headGroupSpec"},
    "spec.rayClusterConfig.gcsFaultToleranceOptions.redisPassword.valueFrom.secretKeyRef": {"key"},
    "spec.rayClusterConfig.headGroupSpec": {"template"},
    "spec.rayClusterConfig.workerGroupSpecs[]": {"groupName", "maxReplicas", "minReplicas", "template"},
}
# From the definition, except for the strategies, which the operator itself checks
# (`ray-operator/controllers/ray/utils/validation.go`).
CHOICES = {
    "spec.upgradeStrategy.type": {"NewCluster", "NewClusterWithIncrementalUpgrade", "None"},
    "spec.rayClusterConfig.authOptions.mode": {"disabled", "token"},
    "spec.rayClusterConfig.autoscalerOptions.upscalingMode": {"Default", "Aggressive", "Conservative"},
    "spec.rayClusterConfig.autoscalerOptions.version": {"v1", "v2"},
}
MINIMUM = {"spec.rayClusterDeletionDelaySeconds": 0}


@dataclass(frozen=True)
class Field:
    """A value in a manifest: where it stands there, under which path of `TYPES`, and what it is."""

    place: str
    path: str
    value: object


def fields(spec: object) -> Iterator[Field]:
    """Every value of a RayService's `spec`, down to the pod templates, which stay whole."""
    pending = [Field("spec", "spec", spec)]
    while pending:
        field = pending.pop()
        yield field
        if TYPES.get(field.path) == "pod":
            continue
        if isinstance(field.value, dict):
            pending += [
                Field(f"{field.place}.{key}", _path(field.path, str(key)), value)
                for key, value in field.value.items()
            ]
        elif isinstance(field.value, list):
            pending += [
                Field(f"{field.place}[{k}]", f"{field.path}[]", value) for k, value in enumerate(field.value)
            ]


def faults(spec: object) -> list[str]:
    """What KubeRay would drop or refuse in a RayService's `spec`, a sentence each."""
    return [fault for field in fields(spec) for fault in _faults(field)]


def _path(parent: str, key: str) -> str:
    return f"{parent}.*" if f"{parent}.*" in TYPES else f"{parent}.{key}"


def _faults(field: Field) -> Iterator[str]:
    if field.path not in TYPES:
        yield f"{field.place} is not in the table of fields"
        return
    if not _is_of_type(field.value, TYPES[field.path]):
        yield f"{field.place} is {field.value!r}, no {TYPES[field.path]}"
        return
    if field.path in CHOICES and field.value not in CHOICES[field.path]:
        yield f"{field.place} is {field.value!r}, none of {sorted(CHOICES[field.path])}"
    if isinstance(field.value, int) and field.value < MINIMUM.get(field.path, INT32.start):
        yield f"{field.place} is {field.value}, less than {MINIMUM[field.path]}"
    if isinstance(field.value, dict):
        for missing in sorted(REQUIRED.get(field.path, set()) - field.value.keys()):
            yield f"{field.place}.{missing} is missing"


def _is_of_type(value: object, type_name: str) -> bool:
    """Whether a value read from YAML is of a type of the table. A boolean is no integer."""
    if type_name == "quantity":
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return is_number or (isinstance(value, str) and QUANTITY.fullmatch(value) is not None)
    if type_name == "int32":
        return isinstance(value, int) and not isinstance(value, bool) and value in INT32
    classes = {"object": dict, "pod": dict, "array": list, "string": str, "boolean": bool}
    return isinstance(value, classes[type_name])
