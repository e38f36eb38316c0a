-- What the page needs beside vidgen-worker's tables. Run it once in your project, as postgres (the SQL
-- editor, or psql -f setup.sql). Running it again changes nothing.

-- The sizes to choose from. The page shows each resolution once, whoever made its scenario.
insert into public.video_scenarios (resolution)
select wanted.resolution
  from unnest(array['1280:720', '720:1280', '960:960']) as wanted (resolution)
 where not exists (
         select from public.video_scenarios as s where s.resolution = wanted.resolution
       );

-- Product pictures. The bucket is public because the provider fetches a picture by its address, also
-- hours later; a name has a random part, so nobody finds a picture without its address. Not a signed
-- address: each signature makes another address, and a picture counts by its address.
-- 16 MB and the three types are what the provider takes.
insert into storage.buckets (id, name, public, file_size_limit, allowed_mime_types)
values (
  'product-pictures', 'product-pictures', true, 16777216,
  array['image/jpeg', 'image/png', 'image/webp']
)
on conflict (id) do nothing;

-- A user writes to his own folder, whose name is his id, and to no other.
drop policy if exists "users add pictures to their folder" on storage.objects;
create policy "users add pictures to their folder" on storage.objects
  for insert to authenticated
  with check (
    bucket_id = 'product-pictures'
    and split_part(name, '/', 1) = (select auth.uid())::text
  );

drop policy if exists "users see the pictures of their folder" on storage.objects;
create policy "users see the pictures of their folder" on storage.objects
  for select to authenticated
  using (
    bucket_id = 'product-pictures'
    and split_part(name, '/', 1) = (select auth.uid())::text
  );
