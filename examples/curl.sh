#!/usr/bin/env bash
# Ask an NS-Net server about images, by curl: curl.sh http://localhost:8000 photo.jpg [more ...]
# Where the server wants a key: API_KEY=... curl.sh ...
set -euo pipefail
server=$1
shift
ask=(curl --silent --show-error --fail-with-body --retry 3 ${API_KEY:+--oauth2-bearer "$API_KEY"})

# One image is the body itself. Its name is not sent.
"${ask[@]}" --data-binary "@$1" "$server/detect"
echo

# Several are a form; each answer is a line of JSON, as soon as it is known.
form=()
for file in "$@"; do form+=(--form "files=@\"$file\";filename=image"); done
"${ask[@]}" --no-buffer --header 'Accept: application/x-ndjson' "${form[@]}" "$server/detect/batch"
