"""`python -m madkv.client`: the line interface. It starts with little more than the interpreter itself."""

import os
import sys

EXIT_INTERRUPTED = 130
try:
    from madkv.client.blocking import BlockingClient
    from madkv.client.line import EXIT_FAILED, STDIN, LineInterface, StdoutGone
    from madkv.errors import Abandoned, MadKVError
except KeyboardInterrupt:  # most of the time to start passes here
    sys.exit(EXIT_INTERRUPTED)

USAGE = (
    "usage: python -m madkv.client --server HOST:PORT | --managers HOST:PORT,HOST:PORT,... "
    "[--tls-ca FILE --tls-cert FILE --tls-key FILE]"
)
HELLO = "a client of {}; type GET <key> and the like, one call a line; STOP or Ctrl-D ends it"
EXIT_USAGE = 2


def _notice(text: str) -> None:
    try:
        os.write(2, f"madkv: {text}\n".encode())
    except OSError:
        pass


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _keep_stderr_open() -> None:
    """Without a stderr the socket would get its number, and complaints would go to the server."""
    if not _is_open(2):
        null = os.open(os.devnull, os.O_WRONLY)
        if null != 2:
            os.dup2(null, 2)
            os.close(null)  # it may have got the number of a stdout that is closed, too, and must not pass for one


def _without_tls(words: list[str]) -> list[str]:
    """Words without the options of TLS, which become the variables of the environment that they stand before."""
    rest = []
    while words:
        if words[0] in ("--tls-ca", "--tls-cert", "--tls-key") and len(words) > 1:
            os.environ["MADKV_" + words[0][2:].replace("-", "_").upper()] = words[1]
            words = words[2:]
        else:
            rest.append(words[0])
            words = words[1:]
    return rest


def main(arguments: list[str]) -> int:
    """Read the command line (by hand: argparse alone would double the time to start), serve stdin."""
    _keep_stderr_open()
    if not (_is_open(0) and _is_open(1)):
        _notice("stdin and stdout must be open")  # else a socket would get the number, and the server our answers
        return EXIT_FAILED
    if "--help" in arguments or "-h" in arguments:  # a recipe puts it where its address may stand
        from madkv.client import line

        print(f"{USAGE}\n\n{line.__doc__}")
        return 0
    words = _without_tls([word for argument in arguments for word in argument.split("=", 1)])
    try:
        if len(words) != 2 or words[0] not in ("--server", "--managers"):
            raise MadKVError(USAGE)
        server, managers = (words[1], None) if words[0] == "--server" else (None, words[1])
        client = BlockingClient(server, managers=managers, notice=_notice, abandon_fd=1)
    except MadKVError as error:
        _notice(str(error))
        return EXIT_USAGE
    try:
        if os.isatty(STDIN):
            _notice(HELLO.format(words[1]))
        with client:
            return LineInterface(client).run()
    except (StdoutGone, Abandoned):
        return EXIT_FAILED
    except (MadKVError, OSError) as error:  # the store's are retried: what comes here is stdin's or stdout's, or final
        _notice(str(error))
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
