"""Unpacks the files of a wheel that the rules select.

Usage: unpack.py WHEEL TARGET LIST RULE...

The first rule that matches a file's name decides: `+PATTERN` unpacks the file, `-PATTERN` skips it. A
file that no rule matches is skipped. A file that is in TARGET with the right size is not written again.
The line `SIZE NAME` of each selected file is appended to LIST. Exit status 3: the wheel is damaged.
"""

import fnmatch
import os
import shutil
import sys
import zipfile
import zlib


def wanted(name, rules):
    fitting = (rule[0] == "+" for rule in rules if fnmatch.fnmatchcase(name, rule[1:]))
    return not name.endswith("/") and ".." not in name.split("/") and next(fitting, False)


def unpack(wheel, target, listing, rules):
    with zipfile.ZipFile(wheel) as archive, open(listing, "a") as sizes:
        for info in archive.infolist():
            if not wanted(info.filename, rules):
                continue
            path = os.path.join(target, info.filename)
            if not (os.path.isfile(path) and os.path.getsize(path) == info.file_size):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                if os.path.lexists(path):
                    # Removes the file and does not overwrite it, because it may be a hard link to
                    # a file of a libtorch that is in use.
                    os.remove(path)
                with archive.open(info) as source, open(path, "xb") as out:
                    # Reading to the end also checks the CRC.
                    shutil.copyfileobj(source, out, 1 << 20)
            sizes.write(f"{info.file_size} {info.filename}\n")


try:
    unpack(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
except (zipfile.BadZipFile, zlib.error, EOFError) as error:
    print(f"{sys.argv[1]} is damaged: {error}", file=sys.stderr)
    sys.exit(3)
except OSError as error:
    sys.exit(str(error))
