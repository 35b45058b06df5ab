"""Manages a daemon with QEMU's own QMP client: client.py SOCKET DIRECTORY."""

import asyncio
import os
import sys
import tempfile

from qemu.qmp import ExecuteError, QMPClient


async def refused(qmp, error_class, command, arguments=None):
    """Runs a command that must be refused with an error of this class."""
    try:
        result = await qmp.execute(command, arguments)
    except ExecuteError as error:
        assert error.error_class == error_class, error
    else:
        raise AssertionError(f"{command} was not refused: {result}")


async def protocol(qmp):
    version = await qmp.execute("query-version")
    assert version["qemu"]["major"] == 10, version
    names = {command["name"] for command in await qmp.execute("query-commands")}
    schema = await qmp.execute("query-qmp-schema")
    assert names == {entity["name"] for entity in schema if entity["meta-type"] == "command"}
    await refused(qmp, "CommandNotFound", "no-such-command")
    await refused(qmp, "GenericError", "query-version", {"x": 1})


async def descriptors(qmp):
    with tempfile.TemporaryFile() as file:
        qmp.send_fd_scm(file.fileno())
        await qmp.execute("getfd", {"fdname": "a"})
        await qmp.execute("closefd", {"fdname": "a"})
        await refused(qmp, "GenericError", "closefd", {"fdname": "a"})
        qmp.send_fd_scm(file.fileno())
        added = await qmp.execute("add-fd", {"opaque": "mine"})
    sets = await qmp.execute("query-fdsets")
    fds = [{"fd": added["fd"], "opaque": "mine"}]
    assert sets == [{"fdset-id": added["fdset-id"], "fds": fds}], sets
    await qmp.execute("remove-fd", {"fdset-id": added["fdset-id"]})


async def main(socket, directory):
    os.chdir(directory)
    qmp = QMPClient("test")
    await qmp.connect(socket)
    await protocol(qmp)
    await descriptors(qmp)
    with qmp.listener("SHUTDOWN") as events:
        await qmp.execute("quit")
        event = await events.get()
        assert event["data"]["reason"] == "host-qmp-quit", event
    await qmp.runstate_changed()
    try:
        await qmp.disconnect()
    except EOFError:
        pass


asyncio.run(asyncio.wait_for(main(*sys.argv[1:]), 60))
