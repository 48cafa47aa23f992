#!/bin/sh
# Asks what lights up on one image, with a tool that knows nothing of Phosphene: buf learns the contract from the server
# (gRPC reflection).
#   examples/clients/shell/explain.sh photo.jpg [http://HOST:PORT or https://HOST:PORT]
# BUF names the tool where it is not on PATH (.venv/bin/buf here), TOKEN is an API token, CA a file with the authority
# behind the server's certificate where the system does not know it. Prints JSON.
set -eu

image=${1:?give an image: explain.sh photo.jpg [http://HOST:PORT]}
server=${2:-http://127.0.0.1:50051}

if [ ! -r "$image" ]; then
  echo "explain.sh: cannot read $image" >&2
  exit 2
fi
set -- --protocol grpc
case $server in
  http://*) set -- "$@" --http2-prior-knowledge ;;
  https://*) [ -z "${CA:-}" ] || set -- "$@" --cacert "$CA" ;;
  *) echo "explain.sh: the server is $server; say http://HOST:PORT or https://HOST:PORT" >&2 && exit 2 ;;
esac
if [ -n "${TOKEN:-}" ]; then
  # Through a file: arguments are seen by everybody on the machine.
  headers=$(mktemp)
  trap 'rm -f "$headers"' EXIT
  printf 'authorization: Bearer %s\n' "$TOKEN" > "$headers"
  set -- "$@" --header "@$headers" --reflect-header "@$headers"
fi

data=$(base64 < "$image" | tr -d '\n')
printf '{"image": {"data": "%s"}, "parts": ["EXPLAIN_PART_NEURONS", "EXPLAIN_PART_FIDELITY"], "topN": 5}' "$data" \
  | "${BUF:-buf}" curl "$@" --data @- "$server/phosphene.v1.PhospheneService/Explain"
