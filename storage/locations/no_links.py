"""A local store holds plain files and folders: what is reached through a link, or is a device, is not opened.

A store that comes from somebody else could otherwise lead a reader, or a writer that clears up, to any place
of the machine. The store's own path may be a link.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from i2am.storage.errors import DamagedRun

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}


class PlainFolders:
    """The folders below a root that are known to be no links; each is looked at once.

    Parameters
    ----------
    root : Path
        The store.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known = {""}

    def check(self, folder: str) -> None:
        """Refuse a folder that is a link, or lies below one.

        Parameters
        ----------
        folder : str
            Below the root, with ``/``; it need not exist.

        Raises
        ------
        DamagedRun
            Naming what is not plain.
        """
        if folder in self._known:
            return
        if ".." in folder.split("/") or folder.startswith("/"):
            raise _not_plain(f"{self._root}/{folder}", "a path that leads out of it")
        self.check(folder.rpartition("/")[0])
        try:
            mode = os.lstat(self._root / folder).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return
        if stat.S_ISLNK(mode):
            raise _not_plain(f"{self._root}/{folder}", "a symbolic link")
        self._known.add(folder)

    def check_file(self, path: str) -> Path:
        """Refuse a file that is a link, or lies below one.

        Parameters
        ----------
        path : str
            Below the root; it need not exist.

        Returns
        -------
        Path
            The whole path.

        Raises
        ------
        DamagedRun
            Naming what is not plain.
        """
        self.check(path.rpartition("/")[0])
        whole = self._root / path
        if whole.is_symlink():
            raise _not_plain(str(whole), "a symbolic link")
        return whole

    def open(self, path: str) -> int:
        """Open a file for reading.

        Parameters
        ----------
        path : str
            Below the root.

        Returns
        -------
        int
            A file descriptor.

        Raises
        ------
        FileNotFoundError, NotADirectoryError
            If it does not exist.
        IsADirectoryError
            If it is a folder.
        DamagedRun
            If it is a link or a device, or lies below a link.
        OSError
            As the system reports it.
        """
        self.check(path.rpartition("/")[0])
        whole = self._root / path
        try:
            # Without waiting: opening a pipe would hang until somebody writes to it.
            fd = os.open(whole, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ELOOP and whole.is_symlink():
                raise _not_plain(str(whole), "a symbolic link") from None
            if error.errno == errno.ENXIO:
                raise _not_plain(str(whole), "a socket or a device") from None
            raise
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            return fd
        os.close(fd)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(whole))
        raise _not_plain(str(whole), _KINDS.get(stat.S_IFMT(mode), "something else"))


def refuse_link(folder: Path) -> None:
    """Refuse a folder of the store that is a link.

    Parameters
    ----------
    folder : Path
        Its path; it need not exist.

    Raises
    ------
    DamagedRun
        If it is a link.
    """
    if folder.is_symlink():
        raise _not_plain(str(folder), "a symbolic link")


def _not_plain(place: str, got: str) -> DamagedRun:
    return DamagedRun(
        f"{place} is not part of a store",
        expected="plain files and folders",
        got=got,
        remedy="copy what it points to into its place, if you trust it",
    )
