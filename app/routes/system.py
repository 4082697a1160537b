"""Probes, metrics and model details, for operators: a router each, as ports differ in them."""

from fastapi import APIRouter, Depends, Request, Response

from app.errors import ApiError
from app.metrics import CONTENT_TYPE
from app.routes import authorized
from app.schemas import BackboneOut, LimitsOut, ModelDetailsOut, Status, ThresholdsOut, problems
from app.service import Service
from model.images import FORMATS

probes = APIRouter(tags=["operation"])
exposition = APIRouter(tags=["operation"])
details = APIRouter(tags=["operation"], dependencies=[Depends(authorized)])


@probes.head("/livez", include_in_schema=False)
@probes.head("/healthz", include_in_schema=False)
@probes.get("/livez", summary="Does the process need a restart?", responses=problems("/livez"))
@probes.get("/healthz", summary="The same as /livez", responses=problems("/healthz"))
async def livez(request: Request) -> Status:
    """200 while the model is being loaded and as long as device and decoders get on."""
    service: Service = request.app.state.service
    if not service.alive:
        raise ApiError("not_ready", "Device or decoders do not answer.", retry_after=30)
    return Status(status="ok")


@probes.head("/readyz", include_in_schema=False)
@probes.get("/readyz", summary="Should traffic be sent here?", responses=problems("/readyz"))
async def readyz(request: Request) -> Status:
    """200 once weights are loaded and warm, until draining; a full queue does not change it."""
    service: Service = request.app.state.service
    service.check_open()
    return Status(status="ok")


@exposition.head("/metrics", include_in_schema=False)
@exposition.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems("/metrics"),
    },
)
async def metrics(request: Request) -> Response:
    """Text exposition format 0.0.4."""
    service: Service = request.app.state.service
    return Response(service.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


@details.head("/model", include_in_schema=False)
@details.get(
    "/model",
    summary="The loaded model",
    response_model=ModelDetailsOut,
    responses=problems("/model"),
)
async def model(request: Request) -> ModelDetailsOut:
    """Checkpoint, backbone, device, thresholds and others, calibration, figures, limits."""
    service: Service = request.app.state.service
    about, limits = service.desk.about, service.settings
    cuts = about.thresholds
    return ModelDetailsOut(
        name=about.name,
        version=about.version,
        sha256=about.sha256,
        backbone=BackboneOut(name=about.backbone, sha256=about.backbone_sha256),
        device=about.device,
        engine=about.engine,
        precision=about.precision,
        dtype=about.dtype,
        canvases=about.canvases,
        thresholds=ThresholdsOut(real_below=cuts.real_below, ai_above=cuts.ai_above),
        quality=about.quality,
        cuts=list(about.cuts),
        calibration=dict(about.calibration),
        evaluation=dict(about.evaluation),
        limits=LimitsOut(
            max_upload_bytes=limits.max_upload_bytes,
            max_request_bytes=limits.max_request_bytes,
            max_files=limits.max_files,
            max_pixels=limits.max_pixels,
            max_aspect=limits.max_aspect,
            min_side=about.min_side,
            explained=service.explained,
            formats=[row.name for row in FORMATS],
        ),
    )
