"""What is asked about the service itself: what it offers, who works for it, whether it is well."""

from lathe._protocol.call import Call, Params, reader
from lathe.models import FormatInfo, Health, Page, TechniqueInfo, Template, WorkerInfo

_techniques = reader(Page[TechniqueInfo])
_formats = reader(Page[FormatInfo])
_templates = reader(Page[Template])
_workers = reader(Page[WorkerInfo])
_health = reader(Health)


def list_techniques(params: Params) -> Call[Page[TechniqueInfo]]:
    return Call("GET", "/v1/techniques", _techniques, params)


def list_formats(params: Params) -> Call[Page[FormatInfo]]:
    return Call("GET", "/v1/formats", _formats, params)


def list_templates(params: Params) -> Call[Page[Template]]:
    return Call("GET", "/v1/templates", _templates, params)


def list_workers(params: Params) -> Call[Page[WorkerInfo]]:
    return Call("GET", "/v1/workers", _workers, params)


def health() -> Call[Health]:
    return Call("GET", "/readyz", _health)
