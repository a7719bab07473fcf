"""A Django view that gives a job to a worker, and waits for its result.

python -m examples.django_view worker
gunicorn --preload --workers 2 --threads 8 examples.django_view:application
curl 'http://localhost:8000/?text=hello'
"""

from __future__ import annotations

import functools
import json
import os
import sys

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path

from redismpx import ConnectionLost, PromiseTimeout
from redismpx.blocking import Multiplexer, PromiseSubscription

TIMEOUT = 10.0  # seconds for a job
mpx = Multiplexer(os.environ.get("REDIS_URL", "redis://localhost:6379"))


@functools.cache
def results() -> PromiseSubscription:
    """One pattern for the results of all jobs. Made with the first job: after the fork, not before."""
    return mpx.new_promise_subscription("result:")


def view(request: HttpRequest) -> HttpResponse:
    try:
        result = results().wait_for_new_promise(timeout=TIMEOUT)  # its channel is an unguessable name
        job = {"text": request.GET.get("text", ""), "reply": result.channel.decode()}
        if mpx.publish("jobs", json.dumps(job)) == 0:
            return HttpResponse("no worker runs\n", status=503)
        return HttpResponse(result.get())
    except PromiseTimeout:
        return HttpResponse("the worker is too slow\n", status=504)
    except ConnectionLost:
        return HttpResponse("no connection to Redis\n", status=503)


def work() -> None:
    with mpx.subscribe("jobs", decode=json.loads) as jobs:
        print("working", flush=True)
        for job in jobs.listen():
            mpx.publish(job.data["reply"], job.data["text"].upper() + "\n")


urlpatterns = [path("", view)]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY=os.urandom(32).hex())
django.setup()
application = get_wsgi_application()

if __name__ == "__main__" and sys.argv[1:] == ["worker"]:
    work()
