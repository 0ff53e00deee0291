"""A moderation hook for tests, which does by a seed what a hook may do."""

import threading

from workers.moderation import AskedFor, MadeOutput

REFUSES, RAISES, HANGS, LIES, EXITS, REFUSES_1, AFTER = 800, 801, 802, 803, 804, 805, 10
SECRET = "the secret of the hook"
asked_before: list[AskedFor] = []
is_down: set[str] = set()  # the methods that fail whatever the seed
is_over = threading.Event()  # lets go of what hangs


def _do(seed: int | None) -> object:
    match seed:
        case int() if seed == REFUSES:
            return "not this\none"
        case int() if seed == RAISES:
            raise RuntimeError(SECRET)
        case int() if seed == HANGS:
            is_over.wait(20)
        case int() if seed == LIES:
            return True
        case int() if seed == EXITS:
            raise SystemExit
    return None


def _fail_if_down(method: str) -> None:
    if method in is_down:
        raise ConnectionError(SECRET)


class Hook:
    def before(self, asked: AskedFor) -> object:
        asked_before.append(asked)
        _fail_if_down("before")
        return _do(asked.seed)

    def after(self, asked: AskedFor, output: MadeOutput) -> object:
        _fail_if_down("after")
        assert output.encode().startswith(b"\x89PNG")
        if asked.seed == REFUSES_1 and output.sample == 1:
            return "not the second"
        return _do(None if asked.seed is None else asked.seed - AFTER)


class Nothing:
    pass


def refuses_to_load() -> None:
    raise AssertionError


hook = Hook()
