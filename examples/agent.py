"""
An agent: a model is asked, the tools it calls are run, and so on until it answers. Each turn is recorded.

    python examples/agent.py ["a task"]

asks a model behind an OpenAI-compatible endpoint: ``OPENAI_BASE_URL`` (such as ``https://api.openai.com/v1``), with
``OPENAI_API_KEY`` and ``OPENAI_MODEL``. Without ``OPENAI_BASE_URL`` a few scripted lines play the model. It needs
``pip install httpx``.

Kill it anywhere, at its question to you, say, and run it again: no turn that was recorded is asked of the model, or
paid for, a second time, and no mail goes out twice. Remove ``agent-data`` and ``agent-outbox`` to begin anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import trio

import memable

MAX_TURNS = 20
MODEL_TIMEOUT_S = 120.0
RETRY_MODEL = memable.RetryPolicy.exponential(8, 1.0, max_delay=60.0, jitter=0.2)
QUESTION = "may-send"


@dataclass(frozen=True)
class ToolCall:
    """
    What the model wants done.
    """

    id: str
    name: str
    arguments: dict[str, str]


@dataclass(frozen=True)
class Reply:
    """
    What the model said in one turn: what the journal keeps of a response.
    """

    content: str
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Mail:
    """
    A mail that the model has written.
    """

    to: str
    text: str


# Tools ----------------------------------------------------------------------------------------------------------------

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {parameter: {"type": "string"} for parameter in parameters},
                "required": parameters,
            },
        },
    }
    for name, description, parameters in (
        ("look_up_address", "Find somebody's address.", ["name"]),
        ("send_mail", "Send a mail. A person is asked first.", ["to", "text"]),
    )
]


async def look_up_address(name: str) -> str:
    return {"ada": "ada@example.org", "charles": "charles@example.org"}.get(name.lower(), f"nobody knows {name}")


async def send_mail(outbox: Path, message_id: str, mail: Mail) -> str:
    print(f"sending a mail to {mail.to}", flush=True)
    directory = trio.Path(outbox)
    await directory.mkdir(exist_ok=True)
    draft = directory / f"{message_id}.draft"
    await draft.write_text(f"To: {mail.to}\n\n{mail.text}\n")
    await draft.rename(directory / message_id)
    return f"sent to {mail.to}"


async def was_mail_sent(outbox: Path, message_id: str, mail: Mail) -> str:
    """
    Look into the outbox: asked after a crash that came while the mail was being sent.
    """
    if not await trio.Path(outbox / message_id).exists():
        raise memable.NotDoneError
    return f"sent to {mail.to}"


# The model ------------------------------------------------------------------------------------------------------------


def parse_reply(response: Any) -> Reply:
    """
    Read a chat completion; ``ValueError`` and ``LookupError``, say, mean that the model did not keep to the format.
    """
    message = response["choices"][0]["message"]
    calls: list[ToolCall] = []
    for call in message.get("tool_calls") or ():
        arguments = json.loads(call["function"]["arguments"] or "{}")
        if not re.fullmatch(r"[\w.-]{1,64}", call["id"]) or call["id"] in {known.id for known in calls}:
            raise ValueError(f"{call['id']!r} does not identify a tool call")
        calls.append(ToolCall(call["id"], call["function"]["name"], {key: str(arguments[key]) for key in arguments}))
    return Reply(message.get("content") or "", tuple(calls))


def say(reply: Reply) -> dict[str, Any]:
    """
    Return a turn of the model's as the messages that it is sent next time contain it.
    """
    message: dict[str, Any] = {"role": "assistant", "content": reply.content}
    if reply.calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments)},
            }
            for call in reply.calls
        ]
    return message


# The workflow ---------------------------------------------------------------------------------------------------------


def make_agent(client: httpx.AsyncClient, model: str, outbox: Path) -> memable.Workflow[[memable.Context, str], str]:
    """
    Return the workflow. What it works with is no part of its input: keys and addresses do not belong into a journal.
    """

    async def ask_model(messages: list[dict[str, Any]]) -> Reply:
        print(f"asking the model, {len(messages)} messages", flush=True)
        request = {"model": model, "messages": messages, "tools": TOOLS}
        response = await client.post("chat/completions", json=request)
        if response.is_client_error and response.status_code not in {408, 409, 429}:
            raise memable.PermanentError(f"the request was refused: {response.status_code} {response.text}")
        # The rest may pass: a broken connection, an overload, an answer that is no answer.
        response.raise_for_status()
        return parse_reply(response.json())

    async def run_tool(ctx: memable.Context, turn: int, call: ToolCall) -> str:
        match call:
            case ToolCall(name="look_up_address", arguments={"name": name}):
                return await ctx.step(f"look-up-{turn}-{call.id}", look_up_address, name)
            case ToolCall(name="send_mail", arguments={"to": to, "text": text}):
                question = memable.SuspendPoint(f"{QUESTION}-{turn}-{call.id}", bool)
                if not await ctx.suspend(question, status=f"send to {to}: {text!r}?"):
                    return "the person whom you work for does not want this to be sent"
                key = f"send-{turn}-{call.id}"
                return await ctx.step(
                    key, send_mail, outbox, ctx.step_id(key), Mail(to, text), once=True, probe=was_mail_sent
                )
            case _:
                return f"there is no tool {call.name!r} that takes {sorted(call.arguments)}"

    @memable.workflow
    async def agent(ctx: memable.Context, task: str) -> str:
        messages: list[dict[str, Any]] = [{"role": "user", "content": task}]
        for turn in range(MAX_TURNS):
            reply = await ctx.step(f"ask-{turn}", ask_model, messages, timeout=MODEL_TIMEOUT_S, retry=RETRY_MODEL)
            if not reply.calls:
                return reply.content
            messages.append(say(reply))
            for call in reply.calls:
                found = await run_tool(ctx, turn, call)
                messages.append({"role": "tool", "tool_call_id": call.id, "content": found})
        raise memable.PermanentError(f"no answer after {MAX_TURNS} turns")

    return agent


def play_model(request: httpx.Request) -> httpx.Response:
    """
    Answer as a model would that has been asked to write to Ada: what is sent next depends on what it was sent.
    """
    messages = json.loads(request.content)["messages"]
    turn = sum(message["role"] == "assistant" for message in messages)
    calls = [
        ToolCall("call-1", "look_up_address", {"name": "Ada"}),
        ToolCall("call-2", "send_mail", {"to": messages[-1]["content"], "text": "The engine is ready."}),
    ]
    done = Reply("Done. The last tool said: " + messages[-1]["content"])
    reply = Reply("", (calls[turn],)) if turn < len(calls) else done
    return httpx.Response(200, json={"choices": [{"message": say(reply)}]})


async def run_task(
    engine: memable.Engine,
    agent: memable.Workflow[[memable.Context, str], str],
    task: str,
    ask_person: Callable[[str], Awaitable[bool]],
) -> str:
    """
    Start or continue the instance of a task, and bring it a person's answers until it ends.
    """
    # One instance for each task: the same task again continues it, or gets the answer that it had.
    instance_id = hashlib.sha256(task.encode()).hexdigest()[:16]
    invocation = await engine.invoke(agent, task, instance_id=instance_id)
    async for state in invocation.states():
        # It is Suspended, too, while it waits to ask the model once more.
        if isinstance(state, memable.Suspended) and state.key.startswith(QUESTION):
            question = memable.SuspendPoint(state.key, bool)
            await engine.signal(agent, instance_id, question, await ask_person(state.status or ""))
    return await invocation.result()


async def ask_terminal(question: str) -> bool:
    answer = await trio.to_thread.run_sync(input, f"{question} [y/n] ", abandon_on_cancel=True)
    return answer.strip() == "y"


async def main(words: Sequence[str] = ()) -> None:
    task = " ".join(words) or "Tell Ada that the engine is ready."
    base_url = os.environ.get("OPENAI_BASE_URL")
    client = httpx.AsyncClient(
        base_url=base_url or "http://scripted",
        headers={"Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', '')}"},
        transport=None if base_url else httpx.MockTransport(play_model),
        timeout=MODEL_TIMEOUT_S,
    )
    async with client:
        outbox = Path(await trio.Path("agent-outbox").resolve())
        agent = make_agent(client, os.environ.get("OPENAI_MODEL", "gpt-4o-mini"), outbox)
        async with memable.open_engine("agent-data", workflows=[agent]) as engine:
            print(await run_task(engine, agent, task, ask_terminal))


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
