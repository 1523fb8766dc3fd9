#!/bin/sh
# The one-shot service `certs` of docker-compose.yml: an authority, and for each role ca.pem and its own pair in a
# volume of its own. What is complete stays; --force makes everything anew (servers read it by themselves).
set -eu
certs=${CERTS:-/roles} # another directory in tests
roles="party0 party1 dealer coordinator client"

complete() {
    for role in $roles; do
        test -s "$certs/$role/$role.key" || return 1 # written last
    done
}

for role in party0 party1 dealer coordinator; do # --force or not: without its key, what a server has stored is lost
    key=$certs/$role/storage.key
    test -s "$key" && continue
    (umask 077 && python -c 'import secrets; print(secrets.token_hex(32))' > "$key.new")
    mv "$key.new" "$key"
done
if [ "${1:-}" != --force ] && complete; then
    echo "certificates: kept"
    exit 0
fi
for role in $roles; do
    rm -f "$certs/$role/$role.key"
done
python -m ditto certs init --force --client local --dir "$certs/authority"
for role in $roles; do
    cp "$certs/authority/ca.pem" "$certs/$role/"
    mv "$certs/authority/$role.pem" "$certs/$role/"
    mv "$certs/authority/$role.key" "$certs/$role/"
done
echo "certificates: one volume for each role; the authority's key stays in its own"
