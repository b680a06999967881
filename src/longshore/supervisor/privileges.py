"""Whom a process becomes once it has its sockets.

The only place that changes users.  It is checked before anything is bound, and assumed by whoever runs user code.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from longshore.errors import ConfigError, PermissionNeeded

__all__ = ("Identity",)


@dataclass(frozen=True, slots=True)
class Identity:
    """A user and a group, by number; `name` is the user's, for the groups beside."""

    uid: int | None
    gid: int | None
    name: str | None

    @classmethod
    def of(cls, user: str | None, group: str | None) -> Identity | None:
        """What these names (or numbers) mean; None if neither is given.

        Raises:
            ConfigError: there is no such user or group.
            PermissionNeeded: this process may not become anybody else.
        """
        if user is None and group is None:
            return None
        import grp
        import pwd

        uid = gid = name = None
        if user is not None:
            try:
                entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
            except KeyError:
                if not user.isdigit():
                    raise ConfigError(f"Workers(user={user!r}): there is no such user") from None
                uid = int(user)
            else:
                uid, gid, name = entry.pw_uid, entry.pw_gid, entry.pw_name
        if group is not None:
            try:
                gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
            except KeyError:
                raise ConfigError(f"Workers(group={group!r}): there is no such group") from None
        if os.geteuid() != 0 and (uid not in (None, os.geteuid()) or gid not in (None, os.getegid())):
            raise PermissionNeeded(
                f"Workers(user={user!r}, group={group!r}): only root may become somebody else",
                hint="Start as root, or leave user and group out.",
            )
        return cls(uid, gid, name)

    @property
    def numbers(self) -> tuple[int, int] | None:
        """The user and the group of a process that has become it; None if its user is that of this one."""
        if os.geteuid() != 0 or not self.uid:
            return None
        return self.uid, os.getegid() if self.gid is None else self.gid

    def assume(self) -> None:
        """Become it, for good; the groups first, because afterwards that is not allowed any more."""
        if os.geteuid() != 0:
            return
        if self.gid is not None:
            if self.name is not None:
                os.initgroups(self.name, self.gid)
            else:
                os.setgroups([self.gid])
            os.setgid(self.gid)
        if self.uid is not None:
            os.setuid(self.uid)
