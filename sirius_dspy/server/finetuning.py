"""The routes of `/v1/files` and `/v1/fine_tuning/jobs`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from starlette.datastructures import UploadFile
from starlette.requests import Request

from sirius_dspy.server.answers import ApiError
from sirius_dspy.server.files import Files, check_purpose
from sirius_dspy.server.jobs import Jobs
from sirius_dspy.server.store import page
from sirius_dspy.server.wire import FileObject, JobObject, JobRequest

Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]


def file_routes(files: Files) -> APIRouter:
    """Return the handlers of files."""
    routes = APIRouter(prefix="/v1/files")

    @routes.post("")
    async def upload(request: Request) -> FileObject:
        async with request.form(max_files=1, max_fields=8, max_part_size=1 << 16) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise ApiError(400, "The form has no file in its field 'file'.", param="file")
            check_purpose(form.get("purpose"))
            return await run_in_threadpool(files.add, file.file, file.filename or "")

    @routes.get("")
    def list_files(
        purpose: str | None = None,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
        order: Order = "desc",
    ) -> dict[str, Any]:
        found = [file for file in files.records if purpose in (None, file.purpose)]
        return _page(found if order == "asc" else found[::-1], after, limit)

    @routes.get("/{file_id}")
    def retrieve(file_id: str) -> FileObject:
        return files.records.get(file_id)

    @routes.get("/{file_id}/content")
    def content(file_id: str) -> FileResponse:
        return FileResponse(files.path(files.records.get(file_id).id), media_type="application/octet-stream")

    @routes.delete("/{file_id}")
    def delete(file_id: str) -> dict[str, Any]:
        files.remove(file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    return routes


def job_routes(jobs: Jobs) -> APIRouter:
    """Return the handlers of fine-tuning jobs."""
    routes = APIRouter(prefix="/v1/fine_tuning/jobs")

    @routes.post("")
    def create(request: JobRequest) -> JobObject:
        return jobs.create(request)

    @routes.get("")
    def list_jobs(after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
        return _page(list(jobs.records)[::-1], after, limit)

    @routes.get("/{job_id}")
    def retrieve(job_id: str) -> JobObject:
        return jobs.records.get(job_id)

    @routes.post("/{job_id}/cancel")
    def cancel(job_id: str) -> JobObject:
        return jobs.cancel(job_id)

    @routes.get("/{job_id}/events")
    def list_events(job_id: str, after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
        return _page(jobs.events.of(jobs.records.get(job_id).id)[::-1], after, limit)

    @routes.get("/{job_id}/checkpoints")
    def list_checkpoints(job_id: str, after: str | None = None, limit: Limit = 10) -> dict[str, Any]:
        job = jobs.records.get(job_id)
        found = [] if job.fine_tuned_model is None else [_checkpoint(job, jobs)]
        ids = [checkpoint["id"] for checkpoint in found]
        shown, has_more = page(found, ids, after, limit)
        return _listing(shown, ids[:1], has_more)

    return routes


def _checkpoint(job: JobObject, jobs: Jobs) -> dict[str, Any]:
    """Return the only checkpoint of a finished job: its end."""
    metrics: dict[str, float] = {}
    for event in jobs.events.of(job.id):
        metrics |= event.data or {}
    step = int(metrics.get("step", 0))
    return {
        "id": job.id.replace("ftjob", "ftckpt"),
        "object": "fine_tuning.job.checkpoint",
        "created_at": job.finished_at,
        "fine_tuned_model_checkpoint": job.fine_tuned_model,
        "fine_tuning_job_id": job.id,
        "metrics": {name: value for name, value in metrics.items() if name != "total_steps"},
        "step_number": step,
    }


def _page(items: list[Any], after: str | None, limit: int) -> dict[str, Any]:
    shown, has_more = page(items, [item.id for item in items], after, limit)
    return _listing(shown, [item.id for item in shown], has_more)


def _listing(shown: list[Any], ids: list[str], has_more: bool) -> dict[str, Any]:
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return {"object": "list", "data": shown, "has_more": has_more, "first_id": first, "last_id": last}
