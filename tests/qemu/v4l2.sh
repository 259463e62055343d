#!/usr/bin/env bash
# The v4l2 camera against the kernel's test driver vivid, in a virtual machine: no camera, no /dev/kvm and no
# rights on this machine's kernel are needed. Not part of the gate, since it fetches a kernel (70 MB).
#
#   tests/qemu/v4l2.sh [filter of tests]
#
# Needs Debian (or what has apt and Debian's kernel packages) with qemu-system-x86, busybox-static, cpio, kmod,
# v4l-utils, gcc and cargo; installs what is missing where it runs as root. All it makes lies under target/qemu.
# The guest's whole output is in target/qemu/guest.log.
set -euo pipefail
cd "$(dirname "$0")/../.."

at=$(realpath -m "${CARGO_TARGET_DIR:-target}")/qemu
root=$at/root
mkdir -p "$at"

missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
need qemu-system-x86_64 qemu-system-x86
need cpio cpio
need depmod kmod
need v4l2-ctl v4l-utils
[ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1 || missing+=(busybox-static)
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" -eq 0 ] || { echo "v4l2.sh: apt-get install ${missing[*]}" >&2; exit 1; }
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
fi

# ── the test program ──

program=$(cargo test --locked --test qemu --no-run --message-format=json-render-diagnostics |
    sed -nE '/"kind":\["test"\]/s/.*"executable":"([^"]+)".*/\1/p')

# ── Debian's kernel, unpacked, not installed ──

package=${INSPECTD_QEMU_KERNEL:-$(apt-cache depends linux-image-amd64 |
    sed -nE 's/^ *Depends: (linux-image-.*)/\1/p' | head -n 1)}
release=${package#linux-image-}
kernel=$at/$package
if [ ! -e "$kernel/boot/vmlinuz-$release" ]; then
    (cd "$at" && apt-get download -q "$package")
    rm -rf "$kernel.new"
    dpkg-deb -x "$at/${package}"_*.deb "$kernel.new"
    rm "$at/${package}"_*.deb
    mv "$kernel.new" "$kernel"
fi
depmod -b "$kernel" "$release"

# ── what the guest boots into ──

rm -rf "$root"
mkdir -p "$root"/{bin,proc,sys,dev,tmp,modules}
cp /bin/busybox "$root/bin/"
for applet in sh mount mkdir insmod cat sleep uname poweroff; do
    ln -s busybox "$root/bin/$applet"
done
count=0
modprobe -d "$kernel" -S "$release" --show-depends vivid | while read -r _ module _; do
    count=$((count + 1))
    copy=$root/modules/$(printf %03d $count)-$(basename "$module")
    cp "$module" "$copy"
    case $copy in *.xz) xz -d "$copy" ;; *.zst) zstd -q -d --rm "$copy" ;; esac
done

# A program with the libraries that it is linked to.
put() {
    local library
    cp -L "$1" "$root/bin/$2"
    strip --strip-debug "$root/bin/$2"
    for library in $(ldd "$1" | grep -oE '/[^ ]+'); do
        mkdir -p "$root$(dirname "$library")"
        cp -Lu "$library" "$root$library"
    done
}
put "$program" vivid-tests
put "$(command -v v4l2-ctl)" v4l2-ctl

# node_types=1: a capture node only; input_types=0: a webcam, whose sizes and rates are a list.
cat >"$root/init" <<'EOF'
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
export PATH=/bin RUST_BACKTRACE=1 INSPECTD_VIVID=/dev/video0
echo "guest: $(uname -sr)"
for module in /modules/*; do
    case $module in
    *vivid*) insmod $module n_devs=1 node_types=0x1 num_inputs=1 input_types=0x0 vid_cap_nr=0 ;;
    *) insmod $module ;;
    esac || echo "guest: $module does not load"
done
vivid-tests --test-threads=1 --nocapture $(cat /filter)
echo "guest: rc=$?"
poweroff -f
EOF
chmod +x "$root/init"
printf '%s' "$*" >"$root/filter"
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$at/root.gz"

# ── boot ──

timeout 900 qemu-system-x86_64 -accel tcg -cpu max -smp 2 -m 1024 -nographic -no-reboot -nodefaults \
    -serial stdio -kernel "$kernel/boot/vmlinuz-$release" -initrd "$at/root.gz" \
    -append "console=ttyS0 quiet panic=-1" </dev/null | tr -d '\r' | tee "$at/guest.log"

grep -q '^guest: rc=0$' "$at/guest.log" || { echo "v4l2.sh: FAILED, see $at/guest.log" >&2; exit 1; }
if grep -q SKIPPED "$at/guest.log"; then
    echo "v4l2.sh: FAILED: tests were skipped though the guest has vivid" >&2
    exit 1
fi
echo "v4l2.sh: green on $release in $SECONDS s"
