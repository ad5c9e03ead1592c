"""Reads a firmware image: what it takes of flash and RAM, and which functions could panic. Python's standard library alone."""

import bisect
import collections
import pathlib
import re
import struct

# Section flags and kinds, symbol kinds (ELF specification); relocations that refer to a function (ELF for the Arm Architecture).
ALLOCATED, EXECUTABLE, PROGBITS, SYMTAB, REL = 2, 4, 1, 2, 9
OBJECT, FUNCTION = 1, 2
REFERENCES = {2, 10, 30, 47}
RAM_AT = 0x2000_0000
# What a function calls where it gives up.
PANICS = re.compile(r"(^|::)panicking::|_fail$|unwrap_failed|expect_failed|::panic")


def text(data, at):
    return data[at : data.index(b"\0", at)].decode()


def readable(name):
    """The identifiers of a mangled name (legacy or v0), without hashes."""
    if not name.startswith(("_ZN", "_R")):
        return name
    parts, at = [], 2
    while at < len(name):
        skip = re.compile(r"[sB][0-9a-zA-Z]*_").match(name, at)
        number = re.compile(r"(\d+)_?").match(name, at)
        if skip:
            at = skip.end()
        elif number:
            at = number.end() + int(number[1])
            parts.append(name[number.end() : at])
        else:
            at += 1
    return "::".join(part for part in parts if not re.fullmatch(r"h[0-9a-f]{16}", part))


class Image:
    """A linked image, a 32-bit little-endian ELF file with relocations (`--emit-relocs`)."""

    def __init__(self, path):
        data = pathlib.Path(path).read_bytes()
        assert data[:6] == b"\x7fELF\x01\x01", f"{path}: not a 32-bit little-endian ELF file"
        (at,) = struct.unpack_from("<I", data, 32)
        size, count, names = struct.unpack_from("<HHH", data, 46)
        rows = [struct.unpack_from("<10I", data, at + i * size) for i in range(count)]
        # kind, flags, address, offset, size, link, info
        self.sections = [row[1:8] for row in rows]
        self.data = data
        self.symbols = []
        for kind, _, _, offset, length, link, _ in self.sections:
            if kind == SYMTAB:
                for i in range(offset, offset + length, 16):
                    name, value, n, info, _, where = struct.unpack_from("<IIIBBH", data, i)
                    self.symbols.append((text(data, self.sections[link][3] + name), value, n, info & 15, where))
        self.flash = sum(s[4] for s in self.sections if s[1] & ALLOCATED and s[0] == PROGBITS)
        embedded = {v: n for name, v, n, kind, _ in self.symbols if kind == OBJECT and "ASSET_" in name}
        self.assets = sum(embedded.values())
        self.code = self.flash - self.assets
        self.static_ram = sum(s[4] for s in self.sections if s[1] & ALLOCATED and s[2] >= RAM_AT)
        self.functions = sorted((v & ~1, n, name) for name, v, n, kind, where in self.symbols if kind == FUNCTION and where)

    def panics(self):
        """How often each function calls what gives up, itself not counted, by the function's name."""
        starts = [function[0] for function in self.functions]
        calls = collections.Counter()
        for kind, _, _, offset, length, _, info in self.sections:
            if kind != REL or not self.sections[info][1] & EXECUTABLE:
                continue
            for i in range(offset, offset + length, 8):
                at, what = struct.unpack_from("<II", self.data, i)
                if what & 255 not in REFERENCES or not PANICS.search(readable(self.symbols[what >> 8][0])):
                    continue
                caller = bisect.bisect_right(starts, at) - 1
                name = readable(self.functions[caller][2]) if caller >= 0 else "?"
                if not PANICS.search(name):
                    calls[name] += 1
        return dict(sorted(calls.items()))
