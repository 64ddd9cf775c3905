#!/usr/bin/env bash
# A cluster secured by TLS certificates: run bash tls.sh FOLDER, then the commands that it prints.
set -euo pipefail
mkdir -p "$1" && cd "$1"
openssl req -x509 -newkey rsa:2048 -nodes -days 365 -subj "/CN=hkm-ca" -keyout ca-key.pem -out ca.pem 2> /dev/null
openssl req -newkey rsa:2048 -nodes -subj "/CN=hkm" -keyout key.pem -out request.pem 2> /dev/null
openssl x509 -req -in request.pem -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 365 -out cert.pem 2> /dev/null
chmod 600 ./*key.pem
files="--tls-ca-file $PWD/ca.pem --tls-cert $PWD/cert.pem --tls-key $PWD/key.pem"
# The configuration of hkm, the client.
cat > dask.yaml <<YAML
distributed:
  comm:
    require-encryption: true
    tls:
      ca-file: $PWD/ca.pem
      client: {cert: $PWD/cert.pem, key: $PWD/key.pem}
      scheduler: {cert: $PWD/cert.pem, key: $PWD/key.pem}
      worker: {cert: $PWD/cert.pem, key: $PWD/key.pem}
YAML
echo "dask scheduler --protocol tls $files --scheduler-file cluster.json"
echo "dask worker $files --scheduler-file cluster.json --nthreads 1"
echo "DASK_CONFIG=$PWD hkm cluster pool.zarr tree.zarr --scheduler-file cluster.json"
