#!/usr/bin/env bash
# The runtime on Arm, emulated: Debian's arm64 packages, PyPI's aarch64 wheels, qemu-user. Runs the tests that need no
# PyTorch, encodes with every variant of a bundle, and prints how far the vectors are from this machine's.
#
#   tests/environment/arm64.sh FOLDER BUNDLES [TEST…]
#
# FOLDER is made and takes 1 GB; run again, it is used again. BUNDLES holds tiny-random and mini-m3, as
# `pytest --bundles BUNDLES` leaves them. PYTHON runs the same here (default: python3). CPU is the emulated processor
# (default: neoverse-n1; max has i8mm and bf16). Needs root, for debootstrap, and
#   apt-get install debootstrap qemu-user-static proot
set -euo pipefail
repository=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(realpath -m "$1") bundles=$(realpath "$2")
shift 2
tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(tests/runtime/test_{bundle,cli,encoder,engines,outputs,pipeline,scoring,shapes,sparse,streams,tokenizer}.py
    tests/contract)
root=$folder/root site=$folder/root/usr/local/lib/python3.11/dist-packages

# Packages are unpacked, and none is configured: that would run them all in the emulator, and Python starts without.
if [ ! -d "$root" ]; then
    debootstrap --arch=arm64 --foreign --variant=minbase --include=python3,libgomp1 bookworm "$root.partial"
    for package in "$root".partial/var/cache/apt/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" | tar --extract --keep-directory-symlink --directory "$root.partial"
        rm "$package"
    done
    rm -f "$root.partial/proc" # debootstrap links it to the one outside where it may not mount
    mkdir -p "$root.partial/proc"
    mv "$root.partial" "$root"
fi
if [ ! -d "$site/onnxruntime" ]; then
    wheels=(--only-binary=:all: --python-version 3.11 --implementation cp --no-compile --quiet)
    for glibc in 2_17 2_24 2_26 2_27 2_28 2_31 2_34 2_35 2_36; do wheels+=(--platform "manylinux_${glibc}_aarch64"); done
    "${PYTHON:-python3}" -m pip install --target "$site" "${wheels[@]}" \
        'numpy>=1.26,<3' 'tokenizers>=0.21,<1' 'onnxruntime>=1.20,<2' 'openvino>=2026.0,<2027' \
        'pytest>=8.4,<10' 'filelock>=3.12,<4' 'hypothesis>=6.140,<7'
fi

# What qemu does not show of the processor that it emulates, and engines read: OpenVINO ends with a segmentation fault
# where it finds no topology and caches.
packages=$repository/runtime:$repository/exporter:$repository/models:$repository/benchmarks:$repository/tests
cpus=/sys/devices/system/cpu
for cpu in "$cpus"/cpu[0-9]*; do
    mkdir -p "$folder/cpus/${cpu##*/}/regs/identification"
    cp -r --no-preserve=all "$cpu"/{topology,cache} "$folder/cpus/${cpu##*/}"
    echo 0x00000000413fd0c1 >"$folder/cpus/${cpu##*/}/regs/identification/midr_el1" # Neoverse N1
done
cp "$cpus"/{online,possible,present} "$folder/cpus"
touch "$folder/cpuinfo"

on_arm() {
    proot -q "qemu-aarch64-static -cpu ${CPU:-neoverse-n1}" -r "$root" -b /dev -b /proc -b /sys -b /tmp \
        -b "$folder/cpuinfo:/proc/cpuinfo" -b "$folder/cpus:$cpus" \
        -b "$repository" -b "$bundles" -b "$folder" -w "$repository" \
        /usr/bin/env -i HOME=/tmp PATH=/usr/bin:/bin LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 \
        PYTHONPATH="$packages" /usr/bin/python3 "$@"
}
on_arm "$repository/tests/environment/arm64_vectors.py" cpuinfo >"$folder/cpuinfo.new"
mv "$folder/cpuinfo.new" "$folder/cpuinfo"

for bundle in tiny-random mini-m3; do
    vectors=$repository/tests/environment/arm64_vectors.py here=$folder/$bundle.here.npz there=$folder/$bundle.arm64.npz
    PYTHONPATH=$packages "${PYTHON:-python3}" "$vectors" encode "$bundles/$bundle" "$here"
    on_arm "$vectors" encode "$bundles/$bundle" "$there"
    PYTHONPATH=$packages "${PYTHON:-python3}" "$vectors" compare "$here" "$there"
done
on_arm -m pytest -q -p no:cacheprovider -p no:randomly --basetemp "$folder/tests" --bundles "$bundles" "${tests[@]}"
