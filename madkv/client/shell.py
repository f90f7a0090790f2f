"""`madkv shell`: an interactive prompt with history, help and completion of commands and of keys seen."""

import cmd
import contextlib
import shlex
import sys
from collections import deque
from pathlib import Path

from madkv.client.blocking import BlockingClient
from madkv.errors import MadKVError

HISTORY = Path("~/.madkv_history").expanduser()
HISTORY_LINES = 1000
KEYS_REMEMBERED = 1000
PAIRS_SHOWN = 100


def _show(data: bytes) -> str:
    """Bytes as one would type them: text where it is text, escapes elsewhere, quotes where there is a space."""
    text = data.decode("utf-8", "backslashreplace")
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shlex.quote(text) if not text or " " in text else text


class Shell(cmd.Cmd):
    """One prompt; each command is one call. The docstrings of the commands are their help."""

    prompt = "madkv> "
    doc_header = "Commands (help <command> tells more):"

    def __init__(self, client: BlockingClient, where: str) -> None:
        super().__init__()
        self._client = client
        self._keys: deque[str] = deque(maxlen=KEYS_REMEMBERED)
        self.intro = f"MadKV at {where}. Type help for the commands, Ctrl-D to leave."

    def _words(self, line: str, usage: str) -> list[bytes] | None:
        """The words of a line, quotes and escapes taken in; None, with the usage shown, when their number is wrong."""
        try:
            words = shlex.split(line)
        except ValueError as error:
            self._say(f"{error}; usage: {usage}")
            return None
        if len(words) != len(usage.split()) - 1:
            self._say(f"usage: {usage}")
            return None
        if words[0] not in self._keys:
            self._keys.append(words[0])
        return [word.encode("utf-8", "surrogateescape") for word in words]

    def _say(self, text: str) -> None:
        self.stdout.write(text + "\n")

    def do_put(self, line: str) -> None:
        """put KEY VALUE: set the value of a key; says whether the key existed. Quote a value with spaces."""
        if words := self._words(line, "put KEY VALUE"):
            self._say("replaced" if self._client.put(words[0], words[1]) else "new")

    def do_swap(self, line: str) -> None:
        """swap KEY VALUE: set the value of a key; shows the value it had."""
        if words := self._words(line, "swap KEY VALUE"):
            old = self._client.swap(words[0], words[1])
            self._say("(there was none)" if old is None else _show(old))

    def do_get(self, line: str) -> None:
        """get KEY: show the value of a key."""
        if words := self._words(line, "get KEY"):
            value = self._client.get(words[0])
            self._say("(there is none)" if value is None else _show(value))

    def do_delete(self, line: str) -> None:
        """delete KEY: remove a key; says whether it existed."""
        if words := self._words(line, "delete KEY"):
            self._say("deleted" if self._client.delete(words[0]) else "(there was none)")

    def do_scan(self, line: str) -> None:
        """scan START END: show the pairs with START <= key <= END, in key order."""
        if words := self._words(line, "scan START END"):
            pairs = self._client.scan(words[0], words[1])
            for key, value in pairs[:PAIRS_SHOWN]:
                self._say(f"{_show(key)}  {_show(value)}")
            rest = len(pairs) - PAIRS_SHOWN
            counted = "1 pair" if len(pairs) == 1 else f"{len(pairs):,} pairs"
            self._say(f"({counted}; {rest:,} of them not shown)" if rest > 0 else f"({counted})")

    def do_exit(self, line: str) -> bool:
        """exit: leave. Ctrl-D does the same."""
        return True

    def do_EOF(self, line: str) -> bool:
        """Ctrl-D: leave."""
        self._say("")
        return True

    def emptyline(self) -> bool:
        """An empty line does nothing (by default it would run the last command again)."""
        return False

    def default(self, line: str) -> None:
        """Whatever is no command; upper case, as in the line interface, is one too."""
        word, _, rest = line.partition(" ")
        if word.isupper() and hasattr(self, f"do_{word.lower()}"):
            getattr(self, f"do_{word.lower()}")(rest)
        else:
            self._say(f"no command {word!r}; there are put, swap, get, delete, scan, help, exit")

    def completenames(self, text: str, *ignored: object) -> list[str]:
        """Commands that begin like this, but for the one that stands for Ctrl-D."""
        return [f"{name} " for name in super().completenames(text, *ignored) if name != "EOF"]

    def completedefault(self, text: str, *ignored: object) -> list[str]:
        """Keys used in this session that begin like this."""
        return sorted(f"{key} " for key in self._keys if key.startswith(text))

    def get_names(self) -> list[str]:
        """Names for help and completion: no Ctrl-D among the commands."""
        return [name for name in super().get_names() if name != "do_EOF"]

    def onecmd(self, line: str) -> bool:
        """Run one command. An error is shown and the prompt comes back; Ctrl-C gives up the call that waits."""
        try:
            return bool(super().onecmd(line))
        except MadKVError as error:
            self._say(f"error: {error}")
        except KeyboardInterrupt:
            self._say("\n(given up; if it was a write, it may or may not have taken effect)")
        return False


def run_shell(server: str | None, managers: str | None = None) -> int:
    """Prompt until the user leaves; the exit status. Either the server is given, or the managers."""
    try:
        import readline
    except ImportError:
        readline = None  # type: ignore[assignment]  # no line editing on this platform
    interactive = sys.stdin.isatty()
    if readline is not None and interactive:
        with contextlib.suppress(OSError):
            readline.read_history_file(HISTORY)
        readline.set_history_length(HISTORY_LINES)
        readline.set_completer_delims(" \t\n")
    try:
        with BlockingClient(
            server, managers=managers, notice=lambda text: print(f"({text}; Ctrl-C gives up)", file=sys.stderr)
        ) as client:
            shell = Shell(client, managers or server or "")
            if not interactive:
                shell.intro, shell.prompt, shell.use_rawinput = None, "", False
            while True:
                try:
                    shell.cmdloop()
                    return 0
                except KeyboardInterrupt:
                    shell.intro = None
                    print()
    except MadKVError as error:
        print(f"madkv: {error}", file=sys.stderr)
        return 2
    finally:
        if readline is not None and interactive:
            with contextlib.suppress(OSError):
                readline.write_history_file(HISTORY)
