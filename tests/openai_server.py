"""A server with OpenAI's files, fine-tuning jobs and chat."""

import email
import json
import re
import threading
from contextlib import contextmanager

from tests.http_server import Handler, serving

DROPPED = 0
"""The status of an answer that is never sent: the connection is closed."""


class FakeOpenAI:
    """A server with OpenAI's files, fine-tuning jobs and chat, as far as DSPy and `HostedTrainer` use them.

    Args:
        statuses: What a job says of itself, one after the other; the last one stays.
        error: What a failed job gives as its reason.
    """

    def __init__(self, statuses=("validating_files", "queued", "running", "succeeded"), error=None):
        self.statuses, self.error = list(statuses), error
        self.files, self.jobs, self.cancelled, self.keys, self.chats = {}, {}, [], set(), []
        self.polled = threading.Event()
        self.routes = [
            ("POST", r"/v1/files", self.upload),
            ("GET", r"/v1/files/(.+)", lambda body, name: self.file(name)),
            ("DELETE", r"/v1/files/(.+)", self.delete),
            ("POST", r"/v1/fine_tuning/jobs", self.create),
            ("GET", r"/v1/fine_tuning/jobs", self.list),
            ("POST", r"/v1/fine_tuning/jobs/(.+)/cancel", self.cancel),
            ("GET", r"/v1/fine_tuning/jobs/(.+)/events", self.events),
            ("GET", r"/v1/fine_tuning/jobs/(.+)", self.poll),
            ("POST", r"/v1/chat/completions", self.chat),
        ]

    def answer(self, method, path, body, content_type):
        for expected, pattern, handler in self.routes:
            if method == expected and (found := re.fullmatch(pattern, path.partition("?")[0])):
                parsed = self.parse(body, content_type)
                return 200, handler(parsed, *found.groups())
        return 404, {"error": {"message": f"no route {method} {path}"}}

    @staticmethod
    def parse(body, content_type):
        if content_type.startswith("multipart/"):
            message = email.message_from_bytes(b"Content-Type: " + content_type.encode() + b"\n\n" + body)
            return {part.get_param("name", header="content-disposition"): part for part in message.get_payload()}
        return json.loads(body or b"{}")

    def upload(self, form):
        name = f"file-{len(self.files)}"
        self.files[name] = form["file"].get_payload(decode=True)
        assert form["purpose"].get_payload() == "fine-tune"
        return self.file(name)

    def file(self, name):
        size = len(self.files[name])
        fixed = {"object": "file", "purpose": "fine-tune", "status": "processed", "created_at": 1, "filename": "f"}
        return {"id": name, "bytes": size, **fixed}

    def delete(self, body, name):
        del self.files[name]
        return {"id": name, "object": "file", "deleted": True}

    def create(self, body):
        name = f"ftjob-{len(self.jobs)}"
        self.jobs[name] = {**body, "left": list(self.statuses)}
        return self.job(name)

    def list(self, body):
        return {"object": "list", "data": [self.job(name) for name in reversed(self.jobs)], "has_more": False}

    def job(self, name):
        job = self.jobs[name]
        status = "cancelled" if name in self.cancelled else job["left"].pop(0) if job["left"][1:] else job["left"][0]
        return {
            "id": name,
            "object": "fine_tuning.job",
            "status": status,
            "model": job["model"],
            "fine_tuned_model": f"ft:{job['model']}:org::{name}" if status == "succeeded" else None,
            "training_file": job["training_file"],
            "hyperparameters": job.get("hyperparameters", {}),
            "estimated_finish": 1,
            "created_at": 1,
            "organization_id": "org",
            "result_files": [],
            "trained_tokens": 900 if status == "succeeded" else None,
            "seed": 0,
            "error": self.error if status == "failed" else None,
        }

    def poll(self, body, name):
        self.polled.set()  # so the caller knows the job's name by now
        return self.job(name)

    def events(self, body, name):
        event = {"id": "e", "object": "fine_tuning.job.event", "created_at": 1, "level": "info", "message": "training"}
        return {"object": "list", "data": [event], "has_more": False}

    def cancel(self, body, name):
        self.cancelled.append(name)
        return self.job(name)

    def chat(self, body):
        self.chats.append(body)
        message = {"role": "assistant", "content": f"I am {body['model']}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}

    @contextmanager
    def serving(self):
        fake = self

        class OpenAIHandler(Handler):
            def reply(self):
                fake.keys.add(self.headers.get("Authorization"))
                content_type = self.headers.get("Content-Type") or ""
                status, payload = fake.answer(self.command, self.path, self.read(), content_type)
                if status == DROPPED:
                    self.close_connection = True
                    return
                self.answer(payload, status)

            do_GET = do_POST = do_DELETE = reply

        with serving(OpenAIHandler) as server:
            yield f"{server.uri}/v1"
