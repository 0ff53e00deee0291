"""The client for asyncio: as the one that blocks."""

import asyncio
import inspect
import threading

import pytest

from smalti import AsyncClient, AsyncJob, Client, Job, JobFailed, WaitTimeout
from tests.fake_engine import pixels_of


def run(service, use):
    async def connected():
        async with AsyncClient(service.url, timeout_s=20, retry_s=5) as client:
            return await use(client)

    return asyncio.run(connected())


def test_it_makes_what_the_other_makes(service, client):
    async def use(asynchronous: AsyncClient):
        generated = await asynchronous.generate(seed=7)
        encoded = await asynchronous.encode([pixels_of(3), pixels_of(4)])
        return generated, encoded, await asynchronous.decode(encoded), await asynchronous.pipelines()

    generated, encoded, decoded, pipelines = run(service, use)
    assert generated.outputs[0].bytes() == client.generate(seed=7).outputs[0].bytes()
    assert encoded == client.encode([pixels_of(3), pixels_of(4)])
    assert decoded.outputs[1].image().getpixel((0, 0)) == 4
    assert pipelines == client.pipelines()


@pytest.mark.parametrize(("blocking", "asynchronous"), [(Client, AsyncClient), (Job, AsyncJob)])
def test_both_have_the_same_methods_with_the_same_arguments(blocking, asynchronous):
    def signatures(kind: type) -> dict[str, list[inspect.Parameter]]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: [each.replace(annotation=None) for each in inspect.signature(method).parameters.values()]
            for name, method in methods
            if not name.startswith("_")
        }

    assert signatures(blocking) == signatures(asynchronous)


def test_a_job_is_followed_and_cancelled(service):
    async def use(client: AsyncClient):
        service.engine.is_held.set()
        job = await client.submit("generate", seed=1, preview=True)
        async for event in job.events():
            if event.preview:
                await job.cancel()
        return job.info, (await client.job(job.id)).info

    seen, looked_up = run(service, use)
    assert (seen.status, looked_up.status) == ("cancelled", "cancelled")


def test_many_run_at_once_and_come_in_order(service):
    service.engine.step_s = 0.05

    async def use(client: AsyncClient):
        results = client.map("generate", ({"seed": seed} for seed in range(12)), concurrency=12)
        return [result.seed async for result in results]

    service.engine.companies.clear()
    assert run(service, use) == list(range(12))
    assert max(len(together) for together in service.engine.companies) >= 3


def test_one_of_many_fails_alone_when_asked_and_else_ends_the_rest(service):
    requests = [{"seed": 1}, {"seed": 666}, {"seed": 2}]

    async def kept(client: AsyncClient):
        return [each async for each in client.map("generate", requests, return_errors=True)]

    async def raised(client: AsyncClient):
        return [each async for each in client.map("generate", requests)]

    assert [type(each).__name__ for each in run(service, kept)] == ["Result", "JobFailed", "Result"]
    with pytest.raises(JobFailed):
        run(service, raised)


def test_the_loop_goes_on_while_a_job_is_waited_for(service):
    async def use(client: AsyncClient):
        service.engine.is_held.set()
        threading.Timer(0.3, service.engine.is_held.clear).start()
        waiting = asyncio.create_task(client.generate(seed=1))
        num_turns = 0
        while not waiting.done():
            await asyncio.sleep(0.01)
            num_turns += 1
        return num_turns

    assert run(service, use) >= 5


def test_time_that_is_over_is_told(service):
    async def use(client: AsyncClient):
        service.engine.is_held.set()
        await client.generate(seed=1, timeout_s=0.4)

    with pytest.raises(WaitTimeout):
        run(service, use)
