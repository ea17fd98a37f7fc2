# The first process of a host: waits for its network, makes its private places, becomes its sshd.
# Arguments: the host's name, its folder, the shell of its user ana, folders below /root to keep.
set -eu
name=$1 folder=$2 shell=$3
shift 3
read -r _
mount --make-rprivate /
mount -t proc proc /proc
for kept; do
    mkdir -p "$folder$kept"
    mount --bind "$kept" "$folder$kept"
    mount -o remount,ro,bind "$folder$kept"
done
mount --rbind "$folder/root" /root
mount --bind "$folder/tmp" /var/tmp
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/sshd /run/lock
mount -t tmpfs -o mode=755 tmpfs /home
mkdir -m 700 /home/ana
cp -r /root/.ssh /home/ana
chown -R 61001:61001 /home/ana
{ cat /etc/passwd; echo "ana:*:61001:61001::/home/ana:$shell"; } >"$folder/passwd"
{ cat /etc/group; echo "ana:x:61001:"; } >"$folder/group"
{ cat /etc/shadow; echo "ana:*:19000:0:99999:7:::"; } >"$folder/shadow"
for file in passwd group shadow; do mount --bind "$folder/$file" "/etc/$file"; done
mount --bind "$folder/../hosts" /etc/hosts
hostname "$name"
exec /usr/sbin/sshd -D -e -f "$folder/sshd_config"
