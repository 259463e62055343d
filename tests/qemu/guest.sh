# To be sourced, from the repository's root: a virtual machine with Debian's kernel, for devices that this
# machine has not. It is emulated throughout: neither /dev/kvm nor rights on this machine's kernel are needed.
# Fetches the kernel (70 MB) once; all it makes lies under target/qemu.
#
# Needs Debian (or what has apt and Debian's kernel packages) with qemu-system-x86, busybox-static, cpio and
# kmod; installs what is missing where it runs as root. INSPECTD_QEMU_KERNEL names another kernel package.

at=$(realpath -m "${CARGO_TARGET_DIR:-target}")/qemu

# guest_needs [COMMAND PACKAGE]...: what these tests need besides.
guest_needs() {
    local missing=()
    set -- qemu-system-x86_64 qemu-system-x86 cpio cpio depmod kmod "$@"
    while [ $# -gt 0 ]; do
        command -v "$1" >/dev/null || missing+=("$2")
        shift 2
    done
    [ -x /bin/busybox ] && ! ldd /bin/busybox >/dev/null 2>&1 || missing+=(busybox-static)
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" -eq 0 ] || {
        echo "${0##*/}: apt-get install ${missing[*]}" >&2
        exit 1
    }
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
}

# guest_test NAME: builds this test target and says where its program lies.
guest_test() {
    cargo test --locked --test "$1" --no-run --message-format=json-render-diagnostics |
        sed -nE '/"kind":\["test"\]/s/.*"executable":"([^"]+)".*/\1/p'
}

# Unpacks Debian's kernel; it is not installed.
guest_kernel() {
    local package=${INSPECTD_QEMU_KERNEL:-$(apt-cache depends linux-image-amd64 |
        sed -nE 's/^ *Depends: (linux-image-.*)/\1/p' | head -n 1)}
    release=${package#linux-image-}
    kernel=$at/$package
    mkdir -p "$at"
    if [ ! -e "$kernel/boot/vmlinuz-$release" ]; then
        (cd "$at" && apt-get download -q "$package")
        rm -rf "$kernel.new"
        dpkg-deb -x "$at/${package}"_*.deb "$kernel.new"
        rm "$at/${package}"_*.deb
        mv "$kernel.new" "$kernel"
    fi
    depmod -b "$kernel" "$release"
}

# guest_root NAME MODULE: what the guest boots into, with this module and those that it asks for. Stdin is
# what it does, after `module_options` of the module, if there are any.
guest_root() {
    local count=0 module copy
    root=$at/$1
    rm -rf "$root"
    mkdir -p "$root"/{bin,proc,sys,dev,tmp,modules}
    cp /bin/busybox "$root/bin/"
    /bin/busybox --list | grep -vx busybox | while read -r applet; do
        ln -s busybox "$root/bin/$applet"
    done
    modprobe -d "$kernel" -S "$release" --show-depends "$2" | while read -r _ module _; do
        count=$((count + 1))
        copy=$root/modules/$(printf %03d $count)-$(basename "$module")
        cp "$module" "$copy"
        case $copy in *.xz) xz -d "$copy" ;; *.zst) zstd -q -d --rm "$copy" ;; esac
    done
    {
        cat <<EOF
#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
export PATH=/bin RUST_BACKTRACE=1
echo "guest: \$(uname -sr)"
for module in /modules/*; do
    case \$module in
    *-$2.ko) insmod \$module ${module_options:-} ;;
    *) insmod \$module ;;
    esac || echo "guest: \$module does not load"
done
EOF
        cat
        echo 'echo "guest: rc=$?"'
        echo 'poweroff -f'
    } >"$root/init"
    chmod +x "$root/init"
}

# guest_program FILE NAME: puts a program there, with the libraries that it is linked to.
guest_program() {
    local library
    cp -L "$1" "$root/bin/$2"
    strip --strip-debug "$root/bin/$2"
    for library in $(ldd "$1" | grep -oE '/[^ ]+'); do
        mkdir -p "$root$(dirname "$library")"
        cp -Lu "$library" "$root$library"
    done
}

# guest_run [--append WORDS] [QEMU'S ARGUMENTS]: boots it; fails where its last step did, or skipped a test.
# What the guest said is in $root.log too.
guest_run() {
    local append=
    if [ "${1:-}" = --append ]; then
        append=$2
        shift 2
    fi
    (cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$root.gz"
    timeout 900 qemu-system-x86_64 -accel tcg -cpu max -smp 2 -m 1024 -nographic -no-reboot -nodefaults \
        -serial stdio -kernel "$kernel/boot/vmlinuz-$release" -initrd "$root.gz" \
        -append "console=ttyS0 quiet panic=-1 $append" "$@" </dev/null | tr -d '\r' | tee "$root.log"
    grep -q '^guest: rc=0$' "$root.log" || {
        echo "${0##*/}: FAILED, see $root.log" >&2
        exit 1
    }
    if grep -q SKIPPED "$root.log"; then
        echo "${0##*/}: FAILED: tests were skipped though the guest has the device" >&2
        exit 1
    fi
    echo "${0##*/}: green on $release in $SECONDS s"
}
