"""Client of the NS-Net service: is this image a photograph, or was it generated?"""

from nsnet_client._client import AsyncClient, Client
from nsnet_client._wire import ImageLike
from nsnet_client.errors import ApiError, NSNetError, TransportError
from nsnet_client.models import Detection, Item, ItemError, ItemOk, ModelDetails

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "Detection",
    "ImageLike",
    "Item",
    "ItemError",
    "ItemOk",
    "ModelDetails",
    "NSNetError",
    "TransportError",
]
