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


async def disk(qmp):
    """Makes a disk with all its objects, changes it, and removes it."""
    with open("b.img", "wb") as image:
        image.truncate(1 << 20)
    await qmp.execute("object-add", {"qom-type": "iothread", "id": "io", "poll-max-ns": 0})
    threads = {thread["id"]: thread for thread in await qmp.execute("query-iothreads")}
    assert threads["io"]["thread-id"] > 0, threads
    await qmp.execute("object-add", {"qom-type": "throttle-group", "id": "limits"})
    await qmp.execute("blockdev-add", {"driver": "file", "node-name": "b", "filename": "b.img"})
    throttle = {"driver": "throttle", "node-name": "slow", "throttle-group": "limits", "file": "b"}
    await qmp.execute("blockdev-add", throttle)
    export = {
        "type": "vhost-user-blk",
        "id": "b",
        "node-name": "slow",
        "addr": {"type": "unix", "path": "b.sock"},
        "writable": True,
        "num-queues": 2,
        "iothread": "io",
    }
    await qmp.execute("block-export-add", export)
    assert os.path.exists("b.sock")
    await refused(qmp, "GenericError", "block-export-add", export)
    await refused(qmp, "GenericError", "blockdev-del", {"node-name": "b"})
    await qmp.execute("block_resize", {"node-name": "slow", "size": 2 << 20})
    nodes = {node["node-name"]: node for node in await qmp.execute("query-named-block-nodes")}
    assert nodes["b"]["image"]["virtual-size"] == os.path.getsize("b.img") == 2 << 20, nodes
    limits = {"path": "/objects/limits", "property": "limits"}
    await qmp.execute("qom-set", {**limits, "value": {"iops-total": 100}})
    assert (await qmp.execute("qom-get", limits))["iops-total"] == 100
    exports = {export["id"] for export in await qmp.execute("query-block-exports")}
    assert exports == {stats["qdev"] for stats in await qmp.execute("query-blockstats")}, exports
    with qmp.listener("BLOCK_EXPORT_DELETED") as events:
        await qmp.execute("block-export-del", {"id": "b", "mode": "safe"})
        # The event comes before the answer, so it is already there.
        assert not events.empty()
        assert (await events.get())["data"] == {"id": "b"}
    assert not os.path.exists("b.sock")
    await qmp.execute("blockdev-del", {"node-name": "slow"})
    await qmp.execute("blockdev-del", {"node-name": "b"})
    await qmp.execute("object-del", {"id": "limits"})
    await qmp.execute("object-del", {"id": "io"})
    await refused(qmp, "DeviceNotFound", "qom-list", {"path": "/objects/io"})


async def main(socket, directory):
    os.chdir(directory)
    qmp = QMPClient("test")
    await qmp.connect(socket)
    await protocol(qmp)
    await descriptors(qmp)
    await disk(qmp)
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
